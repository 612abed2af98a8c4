"""The child process of an isolated model: it loads the model and does what its parent asks.

    python -m haversack.edge.model_process        messages on stdin and stdout, see `edge.pipe`

A request is (number, what, arguments), an answer (number, kind, value). Each request has a thread
of its own, because one may cancel another. The process ends when its parent does.
"""

import os
import sys
import threading
from collections.abc import Callable
from itertools import count
from typing import Any

from haversack.devices.errors import BudgetError
from haversack.edge.generation import Generation
from haversack.edge.loading import LoadOptions, load
from haversack.edge.model import Model
from haversack.edge.pipe import Pipe

RESULT, ERROR, PROGRESS = "result", "error", "progress"

_METHODS = ("tokenize", "stats", "budget", "resize", "check_integrity", "speculate")


class ModelProcess:
    """Answers requests until the pipe is closed."""

    def __init__(self, pipe: Pipe) -> None:
        self._pipe, self._numbers = pipe, count()
        self._model: Model | None = None
        self._generations: dict[int, Generation] = {}
        self._answers: dict[str, Callable[..., Any]] = {
            "load": self._load,
            "generate": self._generate,
            "next": self._next,
            "cancel": lambda number: self._generations[number].cancel(),
            "close_generation": lambda number: self._generations.pop(number).close(),
            "call": self._call,
            "abort": os.abort,
        }

    def run(self) -> None:
        while True:
            try:
                number, what, arguments = self._pipe.receive()
            except EOFError:
                return
            threading.Thread(target=self._answer, args=(number, what, arguments)).start()

    def _answer(self, number: int, what: str, arguments: tuple[Any, ...]) -> None:
        try:
            answer = number, RESULT, self._answers[what](*arguments)
        except BaseException as error:
            answer = number, ERROR, described(error)
        try:
            self._pipe.send(answer)
        except OSError:
            os._exit(0)  # the parent is gone

    def _load(self, arguments: tuple[Any, ...], options: LoadOptions) -> Any:
        def progress(what: str, share: float) -> None:
            self._pipe.send((-1, PROGRESS, (what, share)))

        model, ram, ctx, threads, seed = arguments
        self._model = load(model, ram, ctx, threads, seed, options.telling(progress))
        return self._model.plan.without_functions()

    @property
    def _loaded(self) -> Model:
        assert self._model is not None, "the first request loads it"
        return self._model

    def _generate(self, method: str, arguments: tuple[Any, ...], settings: Any) -> Any:
        generation: Generation = getattr(self._loaded, method)(*arguments, **settings)
        number = next(self._numbers)
        self._generations[number] = generation
        return number, generation.prompt_tokens

    def _next(self, number: int) -> Any:
        """Return the next piece, None at the end, and what is known of the generation now."""
        generation = self._generations[number]
        piece = next(generation, None)
        known = {
            name: getattr(generation, name)
            for name in ("tokens", "logprobs", "finish_reason", "stopped_by", "stats")
        }
        return piece, known

    def _call(self, method: str, arguments: tuple[Any, ...]) -> Any:
        assert method in _METHODS
        result = getattr(self._loaded, method)(*arguments)
        return self._loaded.plan.without_functions() if method == "resize" else result


def described(error: BaseException) -> tuple[str, str, dict[str, int]]:
    """Return the name of an error's class, its text, and the bytes that a BudgetError carries."""
    sizes = {}
    if isinstance(error, BudgetError):
        sizes = {"need_bytes": error.need_bytes, "have_bytes": error.have_bytes}
    return type(error).__name__, str(error), sizes


def main() -> None:
    """Serve the parent. What libraries print goes nowhere: stdout is the pipe."""
    pipe = Pipe(os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb"))
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, 0)
    os.dup2(null, 1)
    sys.stdout = open(os.devnull, "w")
    ModelProcess(pipe).run()
    os._exit(0)  # nothing else is of use to anybody now


if __name__ == "__main__":
    main()
