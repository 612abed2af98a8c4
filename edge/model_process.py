"""The child process of an isolated model: it loads the model and does what its parent asks.

    python -m haversack.edge.model_process        messages on stdin and stdout, see `edge.pipe`

A request is (number, what, arguments, dropped), an answer (number, kind, value). Each request has a
thread of its own, because one may cancel another. `dropped` are the generations that the parent
will not ask for again. The process ends when its parent does.
"""

import os
import sys
import threading
from collections.abc import Callable
from dataclasses import replace
from itertools import count
from typing import Any

from haversack.devices.errors import BudgetError
from haversack.edge.generation import Generation
from haversack.edge.loading import LoadOptions, load
from haversack.edge.model import Model
from haversack.edge.pieces import NextPiece
from haversack.edge.pipe import Pipe

RESULT, ERROR, PROGRESS = "result", "error", "progress"

_METHODS = frozenset(
    [
        *("tokenize", "embed", "stats", "budget", "devices", "resize", "check_integrity"),
        *("speculate", "save_kv", "load_kv"),
    ]
)


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
            "cancel": self._cancel,
            "close": self._close,
            "call": self._call,
        }

    def run(self) -> None:
        while True:
            try:
                number, what, arguments, dropped = self._pipe.receive()
            except EOFError:
                return
            for each in dropped:
                self._generations.pop(each, None)  # a generation that is dropped is closed
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
        self._model = load(model, ram, ctx, threads, seed, replace(options, progress=progress))
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

    def _next(self, number: int, num_tokens: int) -> NextPiece:
        """Return how the generation went on since it had `num_tokens` tokens. One that has ended
        is forgotten."""
        generation = self._generations[number]
        try:
            piece = next(generation, "")
        except BaseException:
            self._generations.pop(number, None)
            raise
        if not piece:
            self._generations.pop(number, None)
        return NextPiece(
            piece,
            generation.tokens[num_tokens:],
            generation.logprobs[num_tokens:],
            generation.finish_reason,
            generation.stopped_by,
            generation.stats,
        )

    def _cancel(self, number: int) -> None:
        """Cancel a generation; one that has ended stays as it is."""
        generation = self._generations.get(number)
        if generation is not None:
            generation.cancel()

    def _close(self, number: int) -> None:
        generation = self._generations.pop(number, None)
        if generation is not None:
            generation.close()

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
