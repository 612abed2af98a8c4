"""Running a command: an error becomes one line and an exit code."""

import os
import sys

import typer

from haversack.devices.errors import HaversackError
from haversack.devices.guard import end_process_on_abort
from haversack.edge.cli import app
from haversack.edge.console import notice, prepare_streams

_USAGE_EXIT_CODE = 2


def run() -> int:
    """Run the command line and return the exit code. Raises KeyboardInterrupt."""
    end_process_on_abort()
    try:
        prepare_streams()
        return int(app(prog_name="haversack", standalone_mode=False) or 0)
    except HaversackError as error:
        notice(f"haversack: {error}")
        return error.exit_code
    except OSError as error:  # no StorageError: the text could not be written out
        notice(f"haversack: cannot write the output: {error.strerror}: give it room elsewhere")
        os.dup2(
            os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno()
        )  # nor can the rest be written
        return _USAGE_EXIT_CODE
    except MemoryError as error:  # below what was planned: a limit from outside
        notice(f"haversack: the system gives no more memory ({error}): raise its limit (ulimit -v)")
        return _USAGE_EXIT_CODE
    except typer.TyperException as error:
        notice(f"haversack: {error.format_message().rstrip('.')}: see haversack --help")
        return _USAGE_EXIT_CODE
    except SystemExit as end:  # typer raises it when the reader of stdout is gone
        return int(end.code or 0)
    except typer.Abort:  # typer raises it for Ctrl-C
        raise KeyboardInterrupt from None
