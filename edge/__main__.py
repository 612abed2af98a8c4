"""The program `haversack`: what must stand before the rest of it is imported, and how it ends.

The imports take a quarter of a second. So that Ctrl-C ends the program without a traceback
meanwhile, this module imports almost nothing, and `main` sets a handler first. Before that only
Python itself starts.
"""

import os
import signal
import sys

TYPE_CHECKING = False  # type checkers take it for true; importing `typing` takes 5 ms

if TYPE_CHECKING:
    from types import FrameType
    from typing import NoReturn

_INTERRUPTED_EXIT_CODE = 130  # what a shell reports for a program that Ctrl-C ended
_STANDARD_DESCRIPTORS = (0, 1, 2)
_BUILD_OPTION, _BUILD_VARIABLE = "--llama-build", "HAVERSACK_LLAMA_BUILD"


def main() -> "NoReturn":
    """Run the command line, and end the process with its exit code."""
    # Under nohup, and in the background of a shell, Ctrl-C is for others.
    heeds_ctrl_c = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if heeds_ctrl_c:
        signal.signal(signal.SIGINT, _leave)
    sys.unraisablehook = _leave_from_where_nothing_can_be_raised
    _open_standard_descriptors()
    _name_build(sys.argv[1:])
    try:
        from haversack.edge.program import run

        if heeds_ctrl_c:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        code = run()
        if heeds_ctrl_c:
            signal.signal(signal.SIGINT, _leave)
    except KeyboardInterrupt:
        _leave()
    except ImportError as error:
        code = _refused(error)
    _end(code)


def _name_build(arguments: list[str]) -> None:
    """Pass the option --llama-build on to the imports, which load that build."""
    for argument, following in zip(arguments, [*arguments[1:], ""], strict=False):
        name, equals, value = argument.partition("=")
        if name == _BUILD_OPTION:
            os.environ[_BUILD_VARIABLE] = value if equals else following


def _refused(error: ImportError) -> int:
    """Tell in one line why no build of llama.cpp can be used. Another import that failed is
    raised."""
    from haversack.devices.errors import BindingError

    if not isinstance(error, BindingError):
        raise error
    print(f"haversack: {error}", file=sys.stderr)
    return error.exit_code


def _leave(_: int = signal.SIGINT, __: "FrameType | None" = None) -> "NoReturn":
    """End at once, as Ctrl-C does; on a terminal the shell's prompt begins a line of its own."""
    try:
        if os.isatty(2):
            os.write(2, b"\n")
    except OSError:
        pass  # it was only for looks
    _end(_INTERRUPTED_EXIT_CODE)


def _end(code: int) -> "NoReturn":
    """End the process without Python's own shutdown, in which Ctrl-C would print a traceback and
    threads of ours that still run would be waited for."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (AttributeError, OSError, RuntimeError):
            pass  # it is closed, full, or in use right now
    os._exit(code)


def _leave_from_where_nothing_can_be_raised(problem: "sys.UnraisableHookArgs") -> None:
    """Where Ctrl-C comes in a destructor or a callback of C, Python would only print it."""
    if problem.exc_type is KeyboardInterrupt:
        _leave()
    sys.__unraisablehook__(problem)


def _open_standard_descriptors() -> None:
    """Have a standard stream that is closed lead nowhere: a file opened later would get its number,
    and what is meant for the stream would be written into that file."""
    for descriptor in _STANDARD_DESCRIPTORS:
        try:
            os.fstat(descriptor)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # gets the lowest number


if __name__ == "__main__":
    main()
