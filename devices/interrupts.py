"""Stopping a running call: from another thread, or by Ctrl-C.

Python raises KeyboardInterrupt at the next bytecode. During a call into llama.cpp that is in a
callback, and the exception would be lost in the C frame. Between two lines that belong together it
would leave a model's state half written. So while a call runs, Ctrl-C only sets a flag that the
call checks. KeyboardInterrupt is raised when the call ends.
"""

import signal
import threading
from importlib import import_module
from types import FrameType, TracebackType
from typing import Any

# signal.signal and signal.getsignal convert their values to enumerations, which makes them 20 times
# slower: a token of a small model would spend 3 % of its time there.
_signal: Any = import_module("_signal")


class StopFlag:
    """Asks a call to stop. Any thread or signal handler may set it, because it takes no lock."""

    def __init__(self) -> None:
        self._asked = False
        self._interrupted = False
        self._calls: tuple[StopFlag, ...] = ()

    @property
    def requested(self) -> bool:
        """Return whether the running call is to stop."""
        if self._asked or self._interrupted:
            return True
        for call in self._calls:  # few, and checked often: a generator would take longer
            if call.requested:
                return True
        return False

    def request(self) -> None:
        """Ask the running call to stop as soon as it can."""
        self._asked = True

    def clear(self, *calls: "StopFlag") -> None:
        """Forget earlier requests. From now on stop also if one of `calls` is asked to stop.

        Each call has a flag of its own, so that a request that comes too late for one call cannot
        stop the next one.
        """
        self._asked = self._interrupted = False
        self._calls = calls

    def listening(self) -> "Listening":
        """Turn Ctrl-C into a request inside the block, and into KeyboardInterrupt after it.

        The block changes nothing in other threads than the main one, and where another handler is
        installed, such as that of an outer block.
        """
        return Listening(self)

    def hear(self, _: int, __: FrameType | None) -> None:
        """Note Ctrl-C. This is a signal handler."""
        self._interrupted = True

    def take_interrupt(self) -> bool:
        """Return whether Ctrl-C came since the last call of this, and forget it."""
        interrupted, self._interrupted = self._interrupted, False
        return interrupted


class Listening:
    """The block of `StopFlag.listening`. It is a class, because Ctrl-C between two lines of a
    generator would be raised before its block has begun or after its end."""

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
