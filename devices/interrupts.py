"""Stopping a running call: from another thread, or by Ctrl-C.

Python raises KeyboardInterrupt at the next bytecode, which during a call into llama.cpp is the
first of a callback, where an exception would be lost in the C frame. So while such a call runs,
Ctrl-C only raises a flag that the callbacks look at, and the call raises when C has returned.
"""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class StopFlag:
    """Asks the call that runs to stop; safe to set from any thread."""

    def __init__(self) -> None:
        self.requested = False
        self.interrupted = False

    def clear(self) -> None:
        """Forget an earlier request."""
        self.requested = self.interrupted = False

    def request(self) -> None:
        """Ask the running call to stop as soon as it can."""
        self.requested = True

    def _interrupt(self, _: int, __: FrameType | None) -> None:
        self.requested = self.interrupted = True

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Turn Ctrl-C into a request inside the block, and into KeyboardInterrupt after it.

        Only in the main thread, and only where nobody has installed a handler of their own.
        """
        main = threading.current_thread() is threading.main_thread()
        if not main or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
            yield
            return
        signal.signal(signal.SIGINT, self._interrupt)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, signal.default_int_handler)
            interrupted, self.interrupted = self.interrupted, False
        if interrupted:
            self.clear()
            raise KeyboardInterrupt
