"""The program `haversack`: runs a command, and turns what went wrong into a line and a code."""

import sys
from typing import Any, cast

import typer

from haversack.devices.errors import HaversackError
from haversack.edge.cli import app
from haversack.edge.console import notice, prepare_streams

_USAGE_EXIT_CODE = 2
_INTERRUPTED_EXIT_CODE = 130  # what a shell reports for a program that Ctrl-C ended

# The class of every wrong use of a command. Its module differs between versions of typer; that
# it is the parent of BadParameter does not.
_UsageError = cast(type[Exception], typer.BadParameter.__bases__[0])


def main() -> int:
    """Run the command line; the exit code."""
    prepare_streams()
    try:
        code = app(prog_name="haversack", standalone_mode=False)
    except HaversackError as error:
        notice(f"haversack: {error}")
        return error.exit_code
    except _UsageError as error:
        notice(f"haversack: {_words(error)}: see haversack --help")
        return _USAGE_EXIT_CODE
    except (KeyboardInterrupt, typer.Abort):
        code = _INTERRUPTED_EXIT_CODE
    if code == _INTERRUPTED_EXIT_CODE and sys.stderr.isatty():
        print(file=sys.stderr)  # the shell's prompt begins a line of its own
    return int(code or 0)


def _words(error: Any) -> str:
    """What typer says of a wrong use, without its full stop."""
    return str(error.format_message()).rstrip(".")


if __name__ == "__main__":
    sys.exit(main())
