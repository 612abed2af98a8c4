"""A signal that ends a program gives its terminal a cursor again."""

import os
import select
import signal
import subprocess
import sys

import pytest

LOADING = """
import signal
from haversack.edge.console import load_progress
with load_progress(False) as report:
    report("loading", 0.5)
    print("half of it", flush=True)
    signal.pause()
"""
HIDDEN, SHOWN = b"\x1b[?25l", b"\x1b[?25h"


@pytest.mark.skipif(sys.platform == "win32", reason="no pseudo-terminals there")
@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP"])
def test_a_program_that_loads_may_be_ended(name: str) -> None:
    """Only stderr is its terminal, as in `haversack run < FILE > FILE`."""
    ours, theirs = os.openpty()
    process = subprocess.Popen(
        [sys.executable, "-c", LOADING],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=theirs,
        env={**os.environ, "TERM": "xterm"},
    )
    os.close(theirs)
    with process:
        assert process.stdout is not None and process.stdout.readline() == b"half of it\n"
        process.send_signal(getattr(signal, name))
        assert process.wait(300) == -getattr(signal, name)
    shown = b""
    while select.select([ours], [], [], 1)[0]:
        try:
            shown += os.read(ours, 4096)
        except OSError:  # all is read, and the other end is closed
            break
    os.close(ours)
    assert HIDDEN in shown and shown.rindex(SHOWN) > shown.rindex(HIDDEN)
