"""Rounds of open, generate and close leave nothing behind."""

import subprocess
import sys
from pathlib import Path

import pytest

from haversack.tools.bench import rounds as bench_rounds


def test_rounds_hold_their_bound(tmp_path: Path) -> None:
    """In a process of its own, so that no other test's memory is in the figures."""
    command = [sys.executable, "-m", "haversack.tools.bench.rounds", "--rounds", "12"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "after 12: " in done.stdout and "holds" in done.stdout


def test_a_bound_needs_rounds_after_the_warm_ones() -> None:
    with pytest.raises(SystemExit):
        bench_rounds.main(["--rounds", str(bench_rounds.WARM_ROUNDS)])
