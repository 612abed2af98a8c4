"""haversack backend: what is told of modules and devices."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from haversack.devices import modules


def run(*arguments: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "haversack.edge", "backend", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_modules_and_devices_are_listed(modules_dir: Path) -> None:
    result = run("ls", "--json", "--cache-dir", str(modules_dir.parent))
    told = json.loads(result.stdout)
    path = modules_dir.parent / "backends" / modules.build_dir(Path()) / "libggml-rpc.so"
    assert {"backend": "rpc", "path": str(path)} in told["modules"]
    assert [each["kind"] for each in told["devices"]] == ["CPU"]
    assert told["devices"][0]["total_bytes"] > 0


def test_people_see_a_table(tmp_path: Path) -> None:
    result = run("ls", "--cache-dir", str(tmp_path))
    assert result.returncode == 0 and "CPU" in result.stdout


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("build", "opengl"), "opengl"),
        (("build",), "Missing argument 'BACKEND'"),
        (("serve", "nowhere"), "'nowhere' is no address to listen at: give HOST:PORT"),
        (("serve", "--threads", "0"), "--threads is 0: give 1 or more"),
    ],
)
def test_what_cannot_be_done_is_one_line(arguments: tuple[str, ...], words: str) -> None:
    result = run(*arguments)
    assert (result.returncode, result.stdout) == (2, "")
    assert words in result.stderr and result.stderr.count("\n") == 1
