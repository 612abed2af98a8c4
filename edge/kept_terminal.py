"""A terminal is left as it was found, also where a signal ends the process."""

import os
import signal
import sys
from collections.abc import Generator
from contextlib import contextmanager, suppress
from types import FrameType

if sys.platform != "win32":
    import termios

_ENDING = ("SIGTERM", "SIGHUP")
_USUAL = b"\x1b[?2004l\x1b[?25h\x1b[0m"  # no marks around what is pasted, a cursor, no colours


@contextmanager
def kept_terminal() -> Generator[None]:
    """Inside the block, have SIGTERM and SIGHUP end the process as ever, but with the terminal of
    the standard streams first put back to how it is now. Nothing is changed where none of them is a
    terminal, and where somebody handles or ignores these signals.

    Only the main thread may enter it. Nothing is raised from the handler: it may run in the middle
    of a pass, where an exception would leave a model half written.
    """
    if sys.platform == "win32":  # a console has no such signals
        yield
        return
    terminals = [number for number in (0, 1, 2) if os.isatty(number)]
    if not terminals:
        yield
        return
    descriptor, drawn_on = terminals[0], terminals[-1]
    modes = termios.tcgetattr(descriptor)

    def end(number: int, _: FrameType | None) -> None:
        with suppress(OSError, termios.error):  # the terminal may be gone
            termios.tcsetattr(descriptor, termios.TCSANOW, modes)
        with suppress(OSError):
            if os.environ.get("TERM") != "dumb":
                os.write(drawn_on, _USUAL)
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)

    ours = [
        number
        for number in (getattr(signal, name) for name in _ENDING)
        if signal.getsignal(number) is signal.SIG_DFL
    ]
    for number in ours:
        signal.signal(number, end)
    try:
        yield
    finally:
        for number in ours:
            signal.signal(number, signal.SIG_DFL)
