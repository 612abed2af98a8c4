"""Stopping a running call: from another thread, or by Ctrl-C.

Python raises KeyboardInterrupt at the next bytecode, which during a call into llama.cpp is the
first of a callback, where an exception would be lost in the C frame; and between two lines that
belong together it would leave a model's books half written. So while a call runs, Ctrl-C only
raises a flag that the call looks at, and KeyboardInterrupt is raised at the call's end.
"""

import signal
import threading
from importlib import import_module
from types import FrameType, TracebackType
from typing import Any

# signal.signal and signal.getsignal look what they take and give up in enumerations, which takes 20
# times as long: a token of a small model would spend 3 % of its time there.
_signal: Any = import_module("_signal")


class StopFlag:
    """Asks a call to stop. Any thread and any signal handler may set it: it takes no lock."""

    def __init__(self) -> None:
        self._asked = False
        self._interrupted = False
        self._calls: tuple[StopFlag, ...] = ()

    @property
    def requested(self) -> bool:
        """Whether the call that runs is to stop."""
        if self._asked or self._interrupted:
            return True
        for call in self._calls:  # few, and looked at often: a generator would take longer
            if call.requested:
                return True
        return False

    def request(self) -> None:
        """Ask the running call to stop as soon as it can."""
        self._asked = True

    def clear(self, *calls: "StopFlag") -> None:
        """Forget earlier requests. From now on stop where one of `calls` is asked to: a call brings
        a flag of its own, so that a request which comes too late for it cannot reach the next
        one."""
        self._asked = self._interrupted = False
        self._calls = calls

    def listening(self) -> "Listening":
        """Turn Ctrl-C into a request inside the block, and into KeyboardInterrupt after it.

        Only in the main thread, and only where nobody has installed a handler of their own (an
        outer block has): then the block changes nothing.
        """
        return Listening(self)

    def hear(self, _: int, __: FrameType | None) -> None:
        """Take note of Ctrl-C: a signal handler."""
        self._interrupted = True

    def take_interrupt(self) -> bool:
        """Whether Ctrl-C came since the last time; if so, it is forgotten."""
        interrupted, self._interrupted = self._interrupted, False
        return interrupted


class Listening:
    """The block of `StopFlag.listening`. A class and not a generator: Ctrl-C between two lines of
    a generator that is a context manager would be raised before its block has begun or after."""

    def __init__(self, stop: StopFlag) -> None:
        self._stop = stop
        self._active = False

    def __enter__(self) -> None:
        if threading.get_ident() != threading.main_thread().ident:
            return
        if _signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            self._stop.take_interrupt()  # one that came while an earlier block was ending
            self._active = True
            _signal.signal(signal.SIGINT, self._stop.hear)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if not self._active:
            return
        _signal.signal(signal.SIGINT, signal.default_int_handler)
        if self._stop.take_interrupt():
            raise KeyboardInterrupt from error
