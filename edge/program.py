"""Running a command: an error becomes one line and an exit code."""

import errno
import os
import sys

import typer

from haversack.devices.errors import HaversackError
from haversack.devices.guard import end_process_on_abort
from haversack.devices.system import host
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
        notice(f"haversack: {error}{_file_limit(error)}")
        return error.exit_code
    except OSError as error:
        return _tell_of_system(error)
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


def _tell_of_system(error: OSError) -> int:
    """Tell of an error that no StorageError stands for, and return the exit code."""
    if limit := _file_limit(error):
        notice(f"haversack: {error.strerror}{limit}")
        return _USAGE_EXIT_CODE
    notice(f"haversack: cannot write the output: {error.strerror}: give it room elsewhere")
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())  # the rest cannot be written either
    return _USAGE_EXIT_CODE


def _file_limit(error: BaseException | None) -> str:
    """Return how more files can be open at once, if an error came of too many."""
    while error is not None:
        if isinstance(error, OSError) and error.errno == errno.EMFILE:
            most = host.most_open_files()
            return f"; this program may have {most} files open: raise that limit (ulimit -n 1024)"
        error = error.__cause__ or error.__context__
    return ""
