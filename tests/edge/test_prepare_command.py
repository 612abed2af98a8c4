"""`haversack prepare` and `haversack cache` as their users meet them, also interrupted."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from haversack.quant.records import list_low_files
from haversack.tools.models.synth import TinyShape

PROGRAM = [sys.executable, "-m", "haversack.edge"]
SMALL = TinyShape(num_hidden_layers=2, num_experts=4, vocab_size=64)
TinyModel = Callable[..., Path]


def haversack(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [*PROGRAM, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300)


def printed_object(*arguments: object) -> dict[str, Any]:
    result = haversack(*arguments, "--json")
    assert (result.returncode, result.stderr) == (0, "")
    found = json.loads(result.stdout)
    assert isinstance(found, dict)
    return found


@pytest.fixture(scope="module")
def model(tiny_model: TinyModel) -> Path:
    return tiny_model(shape=SMALL, expert_type="Q8_0")


def test_copies_are_made_listed_and_removed(model: Path, tmp_path: Path) -> None:
    result = haversack("prepare", model, "--cache-dir", tmp_path)
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith("q4_K: ")
    assert "of 8 experts, 8 made now" in result.stdout
    again = printed_object("prepare", model, "--cache-dir", tmp_path)
    assert (again["num_made"], again["num_experts"], again["source"]) == (0, 8, "q4_K")
    listed = printed_object("cache", "--cache-dir", tmp_path)
    (low,) = listed["low_copies"]
    assert (low["path"], low["model"], low["share"]) == (again["path"], str(model), 1.0)
    assert low["disk_bytes"] == listed["disk_bytes"] == again["disk_bytes"]
    assert "low copies, 100%: q4_K" in " ".join(
        haversack("cache", "--cache-dir", tmp_path).stdout.split()
    )
    assert printed_object("cache", "--clear", "--cache-dir", tmp_path)["freed_bytes"] > 0
    assert printed_object("cache", "--cache-dir", tmp_path)["low_copies"] == []


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (["--low", "q9"], "--low is 'q9': give one of"),
        (["--low", "iq1_s"], "iq1_s is only made with an importance matrix"),
        (["--imatrix", "missing.dat"], "missing.dat is no imatrix file: No such file"),
        (["--calibrate", "missing.txt"], "cannot read --calibrate missing.txt"),
    ],
)
def test_what_is_wrong_is_told_in_one_line(
    model: Path, tmp_path: Path, arguments: list[str], why: str
) -> None:
    result = haversack("prepare", model, "--cache-dir", tmp_path, *arguments)
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr.startswith(f"haversack: {why}")
    assert result.stderr.count("\n") == 1


@pytest.mark.parametrize(("end", "code"), [(signal.SIGINT, 130), (signal.SIGKILL, -9)])
def test_a_program_that_was_ended_goes_on(tmp_path: Path, end: signal.Signals, code: int) -> None:
    """The built-in model takes some seconds; the program is ended after its first copies."""
    command = [*PROGRAM, "prepare", "--cache-dir", str(tmp_path), "--threads", "1"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        deadline_s = time.monotonic() + 120
        while not any(file.share > 0 for file in list_low_files(tmp_path)):
            assert time.monotonic() < deadline_s
            assert process.poll() is None
            time.sleep(0.02)
        os.kill(process.pid, end)
        _, errors = process.communicate(timeout=60)
    assert (process.returncode, errors.strip()) == (code, "")
    (left,) = list_low_files(tmp_path)
    assert 0 < left.share < 1
    resumed = printed_object("prepare", "--cache-dir", tmp_path)
    assert resumed["num_made"] == round((1 - left.share) * 256)
    assert resumed["num_damaged"] == 0
