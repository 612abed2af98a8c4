"""Isolated models: a model in a child process, so that a crash of native code cannot end yours."""

import builtins
import contextlib
import os
import signal
import subprocess
import tempfile
import threading
import weakref
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from typing_extensions import Unpack

from haversack.devices import errors
from haversack.devices.errors import AbortedError, BudgetError, ClosedError, HaversackError
from haversack.devices.ledger import Entry
from haversack.edge.child_program import child_command
from haversack.edge.loading import LoadOptions, LoadProgress
from haversack.edge.logprobs import TokenLogprobs
from haversack.edge.model import Message
from haversack.edge.model_devices import DeviceUse
from haversack.edge.model_plan import Plan
from haversack.edge.model_process import ERROR, PROGRESS
from haversack.edge.pieces import NextPiece, Pieces
from haversack.edge.pipe import Pipe
from haversack.edge.prompt import Prompt
from haversack.edge.sampling import Sampling
from haversack.edge.stats import Stats
from haversack.edge.vram import DeviceSettings

_CLOSE_S = 30.0  # until a child that does not end is killed


def load_isolated(
    model: str | Path,
    ram: str | int | None = None,
    ctx: int | None = None,
    threads: int | None = None,
    seed: int | None = None,
    options: LoadOptions | None = None,
    **devices: Unpack[DeviceSettings],
) -> "IsolatedModel":
    """Load a model as `edge.load` does, in a process of its own whose memory `ram` bounds.

    If native code crashes there, each call that runs raises AbortedError, and so do later ones;
    load it again then. Raises what `edge.load` raises.
    """
    options = replace(options or LoadOptions(), **devices)
    child = _Child(options.progress)
    try:
        planned = child.ask(
            "load", (model, ram, ctx, threads, seed), replace(options, progress=None)
        )
    except BaseException:
        child.close()
        raise
    return IsolatedModel(child, planned)


class IsolatedModel:
    """A model in a child process. Use it in a `with` block, or `close` it. Any thread may call."""

    def __init__(self, child: "_Child", planned: Plan) -> None:
        self.plan = planned
        self._child = child

    @property
    def process_id(self) -> int:
        """The number of the child process."""
        return self._child.process_id

    def generate(
        self,
        prompt: Prompt,
        max_tokens: int | None = None,
        sampling: Sampling | None = None,
        **settings: Any,
    ) -> "IsolatedGeneration":
        """Text that goes on from `prompt`, see `Model.generate`."""
        return self._begin("generate", (prompt, max_tokens, sampling), settings)

    def chat(
        self,
        messages: Sequence[Message],
        max_tokens: int | None = None,
        sampling: Sampling | None = None,
        **settings: Any,
    ) -> "IsolatedGeneration":
        """The assistant's reply to `messages`, see `Model.chat`."""
        return self._begin("chat", (messages, max_tokens, sampling), settings)

    def _begin(
        self, method: str, arguments: tuple[Any, ...], settings: dict[str, Any]
    ) -> "IsolatedGeneration":
        return IsolatedGeneration(
            self._child, *self._child.ask("generate", method, arguments, settings)
        )

    def tokenize(self, prompt: Prompt, add_special: bool = True) -> list[int]:
        """See `Model.tokenize`."""
        tokens: list[int] = self._child.ask("call", "tokenize", (prompt, add_special))
        return tokens

    def embed(self, prompt: Prompt) -> npt.NDArray[np.float32]:
        """See `Model.embed`."""
        vector: npt.NDArray[np.float32] = self._child.ask("call", "embed", (prompt,))
        return vector

    def stats(self) -> Stats:
        """See `Model.stats`."""
        found: Stats = self._child.ask("call", "stats", ())
        return found

    def budget(self, device: str = "ram") -> list[Entry]:
        """See `Model.budget`."""
        entries: list[Entry] = self._child.ask("call", "budget", (device,))
        return entries

    def devices(self) -> list[DeviceUse]:
        """See `Model.devices`."""
        uses: list[DeviceUse] = self._child.ask("call", "devices", ())
        return uses

    def resize(self, ram: str | int) -> None:
        """See `Model.resize`."""
        self.plan = self._child.ask("call", "resize", (ram,))

    def save_kv(self, path: str | Path) -> int:
        """See `Model.save_kv`."""
        num_tokens: int = self._child.ask("call", "save_kv", (Path(path).absolute(),))
        return num_tokens

    def load_kv(self, path: str | Path) -> int:
        """See `Model.load_kv`."""
        num_tokens: int = self._child.ask("call", "load_kv", (Path(path).absolute(),))
        return num_tokens

    def speculate(self, how: str) -> None:
        """See `Model.speculate`."""
        self._child.ask("call", "speculate", (how,))

    def check_integrity(self) -> None:
        """See `Model.check_integrity`."""
        self._child.ask("call", "check_integrity", ())

    def close(self) -> None:
        """End the process, with all calls in it; may be called twice."""
        self._child.close()

    def __enter__(self) -> "IsolatedModel":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class IsolatedGeneration(Pieces):
    """Text as it is generated in the child. One that is dropped is closed there with the next
    request of any kind."""

    def __init__(self, child: "_Child", number: int, prompt_tokens: int) -> None:
        super().__init__()
        self._child, self._number = child, number
        self.prompt_tokens = prompt_tokens
        self.tokens: list[int] = []
        self.logprobs: list[TokenLogprobs] = []
        self.stopped_by: str | None = None
        self.stats: Stats | None = None
        self._finish_reason: str | None = None
        self._leave = weakref.finalize(self, child.drop, number)
        self._leave.atexit = False

    @property
    def finish_reason(self) -> str | None:
        return self._finish_reason

    def _read(self) -> str:
        if not self._leave.alive:
            return ""
        try:
            known: NextPiece = self._child.ask("next", self._number, len(self.tokens))
        except HaversackError:
            self._leave.detach()
            raise
        self.tokens += known.tokens
        self.logprobs += known.logprobs
        self.stopped_by, self.stats = known.stopped_by, known.stats
        self._finish_reason = known.finish_reason
        self._shown.append(known.piece)
        if not known.piece:
            self._leave.detach()
        return known.piece

    def cancel(self) -> None:
        self._child.ask("cancel", self._number)

    def close(self) -> None:
        if self._leave.detach() is not None:
            self._finish_reason = self._finish_reason or "cancelled"
            with contextlib.suppress(HaversackError):  # the process is gone, and it with it
                self._child.ask("close", self._number)


# ----------------------------------------------------------------------- child
class _Child:
    """The process, and the requests that wait for its answers."""

    def __init__(self, progress: LoadProgress | None) -> None:
        self._progress = progress
        self._numbers, self._waiting = count(), dict[int, Future[Any]]()
        self._dropped = deque[int]()  # generations that the child may forget
        self._lock = threading.Lock()  # held for the two below
        self._why_over: HaversackError | None = None
        self._log = tempfile.TemporaryFile()
        self._process = subprocess.Popen(
            child_command("haversack.edge.model_process"),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            start_new_session=os.name == "posix",  # Ctrl-C is the parent's
        )
        assert self._process.stdin is not None and self._process.stdout is not None
        self._pipe = Pipe(self._process.stdout, self._process.stdin)
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    @property
    def process_id(self) -> int:
        return self._process.pid

    def ask(self, what: str, *arguments: Any) -> Any:
        """Return the child's answer. Raises its error, AbortedError if it crashes, ClosedError."""
        answer, number = Future[Any](), next(self._numbers)
        with self._lock:
            if self._why_over is not None:
                raise type(self._why_over)(str(self._why_over))
            self._waiting[number] = answer
        with contextlib.suppress(OSError):  # the reader finds out that it is gone, and why
            self._pipe.send((number, what, arguments, self._taken_dropped()))
        return answer.result()

    def drop(self, generation: int) -> None:
        """Have the child forget a generation with the next request. The garbage collector may call
        this at any time, so nothing is waited for."""
        self._dropped.append(generation)

    def _taken_dropped(self) -> list[int]:
        taken = list[int]()
        with contextlib.suppress(IndexError):
            while True:
                taken.append(self._dropped.popleft())
        return taken

    def _read(self) -> None:
        while True:
            try:
                number, kind, value = self._pipe.receive()
            except (EOFError, OSError, ValueError):
                return self._end()
            except Exception as error:  # what was pickled cannot be made here: no answer can be
                self._process.kill()
                return self._end(AbortedError(f"the model's process is not understood: {error}"))
            if kind == PROGRESS:
                if self._progress is not None:
                    self._progress(*value)
                continue
            answer = self._waiting.pop(number)
            if kind == ERROR:
                answer.set_exception(_rebuilt(*value))
            else:
                answer.set_result(value)

    def _end(self, why: HaversackError | None = None) -> None:
        """The pipe is closed: nothing will be answered any more."""
        status = self._process.wait()
        with self._lock:
            if self._why_over is None:
                self._why_over = why or AbortedError(self._death(status))
            waiting, self._waiting = self._waiting, {}
        for answer in waiting.values():
            answer.set_exception(type(self._why_over)(str(self._why_over)))

    def _death(self, status: int) -> str:
        self._log.seek(0)
        lines = self._log.read()[-2000:].decode(errors="replace").strip().splitlines()
        how = f"code {status}"
        if status < 0:
            with contextlib.suppress(ValueError):
                how = signal.Signals(-status).name
        said = f" ({lines[-1]})" if lines else ""
        return f"the model's process ended with {how}{said}: load the model again"

    def close(self) -> None:
        with self._lock:
            if self._why_over is None:
                self._why_over = ClosedError("the model is closed: load it again")
        assert self._process.stdin is not None
        with contextlib.suppress(OSError):
            self._process.stdin.close()
        try:
            self._process.wait(_CLOSE_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
        self._reader.join()
        assert self._process.stdout is not None
        self._process.stdout.close()
        self._log.close()


def _rebuilt(name: str, text: str, sizes: dict[str, int]) -> BaseException:
    """Return the error that the child described."""
    kind: Any = getattr(errors, name, None) or getattr(builtins, name, HaversackError)
    if kind is BudgetError:
        return BudgetError(text, **sizes)
    error: BaseException = kind(text)
    return error
