"""The program `haversack`: runs a command, and turns what went wrong into a line and a code."""

import os
import sys

import typer

from haversack.devices.errors import HaversackError
from haversack.devices.logs import end_process_on_abort
from haversack.edge.cli import app
from haversack.edge.console import notice, prepare_streams

_USAGE_EXIT_CODE = 2
_INTERRUPTED_EXIT_CODE = 130  # what a shell reports for a program that Ctrl-C ended


def main() -> int:
    """Run the command line; the exit code."""
    prepare_streams()
    end_process_on_abort()
    try:
        code = app(prog_name="haversack", standalone_mode=False)
    except HaversackError as error:
        notice(f"haversack: {error}")
        return error.exit_code
    except OSError as error:  # no StorageError: the text could not be written out
        notice(f"haversack: cannot write the output: {error.strerror}: give it room elsewhere")
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # nor can what is left of it
        return _USAGE_EXIT_CODE
    except typer.TyperException as error:
        notice(f"haversack: {error.format_message().rstrip('.')}: see haversack --help")
        return _USAGE_EXIT_CODE
    except (KeyboardInterrupt, typer.Abort):
        code = _INTERRUPTED_EXIT_CODE
    if code == _INTERRUPTED_EXIT_CODE and sys.stderr.isatty():
        print(file=sys.stderr)  # the shell's prompt begins a line of its own
    return int(code or 0)


if __name__ == "__main__":
    sys.exit(main())
