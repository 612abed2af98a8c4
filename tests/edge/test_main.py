"""The program from its first import to its last line: Ctrl-C at any instant, closed streams."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import pytest

from haversack import edge

PROGRAM = [sys.executable, "-m", "haversack.edge"]
# Python tells each import on stderr, and -v each step that follows, so that a test can choose an
# instant by what has happened and not by a clock.
TOLD = [sys.executable, "-X", "importtime", "-m", "haversack.edge"]
FIRST_HEAVY_IMPORT = "typer"

pytestmark = pytest.mark.skipif(
    sys.platform == "win32",
    reason="there Ctrl-C is no signal to one process, nor are streams files",
)


def quiet() -> dict[str, str]:
    """The environment of now, in which idle threads do not spin: tests share cores."""
    return {**os.environ, "OMP_WAIT_POLICY": "passive"}


def lines_from_the_first_import(stderr: IO[str]) -> Iterator[str]:
    """What is told once the program has begun to import itself."""
    for line in stderr:
        if line.rstrip().endswith(FIRST_HEAVY_IMPORT):
            break
    return stderr


# ------------------------------------------------------------------------ Ctrl-C
@pytest.mark.slow
@pytest.mark.parametrize(
    ("num_lines", "until"),
    [(0, ""), (5, ""), (20, ""), (60, ""), (150, ""), (300, "")]
    + [(num_lines, "haversack.") for num_lines in (0, 10)]
    + [(num_lines, "haversack.llama") for num_lines in (0, 3, 10, 30, 60)]
    + [(0, "prefill of")],
)
def test_ctrl_c_at_an_instant_ends_it_quietly(
    num_lines: int, until: str, known_answer_model: Path
) -> None:
    """It would generate for minutes: whenever the signal comes, the program is still at work."""
    run = ("run", known_answer_model, "-v", "-p", "", "--ctx", 100_000, "--ram", "4GiB")
    with subprocess.Popen(
        [*TOLD, *map(str, run)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env=quiet(),
    ) as process:
        assert process.stderr is not None
        told = lines_from_the_first_import(process.stderr)
        while until not in next(told):
            pass
        for _ in range(num_lines):
            next(told)
        process.send_signal(signal.SIGINT)
        _, stderr = process.communicate(timeout=300)
    assert process.returncode == 130
    assert "Traceback" not in stderr and "KeyboardInterrupt" not in stderr


@pytest.mark.slow
def test_ctrl_c_after_the_answer_leaves_the_answer_whole() -> None:
    """The signal comes while the model is closed and the program ends."""
    command = [*PROGRAM, "run", "-p", "Once", "-n", "2", "--json"]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, env=quiet()) as process:
        assert process.stdout is not None
        assert json.loads(process.stdout.readline())["tokens"] == 2
        process.send_signal(signal.SIGINT)
        _, stderr = process.communicate(timeout=300)
    assert process.returncode in (0, 130)
    assert stderr == ""


def test_ctrl_c_that_is_ignored_stays_ignored() -> None:
    """A shell starts programs in the background so, and nohup."""
    command = [*TOLD, "run", "-p", "Once", "-n", "2", "--temp", "0"]
    pipe = subprocess.PIPE
    with subprocess.Popen(
        command,
        stdout=pipe,
        stderr=pipe,
        text=True,
        env=quiet(),
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_IGN),
    ) as process:
        assert process.stderr is not None
        next(lines_from_the_first_import(process.stderr))
        process.send_signal(signal.SIGINT)
        stdout, _ = process.communicate(timeout=300)
    assert (process.returncode, stdout) == (0, " upon a")


def test_the_library_leaves_the_handler_of_ctrl_c_alone_and_loads_nothing_before_its_use() -> None:
    program = (
        "import signal, sys; before = signal.getsignal(signal.SIGINT); from haversack import edge;"
        " binding = 'haversack.devices._native';"
        " assert binding not in sys.modules and 'numpy' not in sys.modules;"
        " edge.load; assert binding in sys.modules and 'llama_cpp' not in sys.modules;"
        " assert signal.getsignal(signal.SIGINT) is before"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=300)


def test_every_public_name_is_there_when_it_is_asked_for() -> None:
    assert {name for name in edge.__all__ if getattr(edge, name).__name__ == name} == {
        *edge.__all__
    }
    assert set(edge.__all__) <= set(dir(edge))
    with pytest.raises(AttributeError, match="no attribute 'train'"):
        edge.train  # type: ignore[attr-defined]  # noqa: B018


# ---------------------------------------------------------------------- streams
def shell(command: str) -> "subprocess.CompletedProcess[str]":
    """Run `command`, in which $H is the program, with a shell that can close streams."""
    environment = {**quiet(), "H": f"{sys.executable} -m haversack.edge"}
    return subprocess.run(
        ["sh", "-c", command], capture_output=True, text=True, timeout=300, env=environment
    )


RUN = "$H run -p Once -n 4 --temp 0"
ANSWER = " upon a time there"


@pytest.mark.parametrize("closed", ["<&-", "2>&-", "<&- 2>&-", "2>/dev/full", "</dev/null"])
def test_an_answer_comes_whatever_else_is_closed(closed: str) -> None:
    result = shell(f"{RUN} {closed}")
    assert (result.returncode, result.stdout, result.stderr) == (0, ANSWER, "")


@pytest.mark.parametrize(
    "command", ["run -p Once -n 4", "plan", "doctor", "cache", "chat", "--help"]
)
def test_without_stdout_there_is_nothing_to_do(command: str) -> None:
    result = shell(f"$H {command} </dev/null >&-")
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr == (
        "haversack: stdout is closed: give it a file or a pipe to write the answer to\n"
    )


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("run -n 4 <&-", "no prompt: stdin is closed; give -p TEXT"),
        ("run -n 4 -p - <&-", "no prompt: stdin is closed; give -p TEXT"),
        ("chat <&-", "stdin is closed: a chat reads its messages there"),
        ("run -n 4 0>/dev/null", "cannot read the prompt from stdin"),
    ],
)
def test_a_stdin_that_gives_nothing_is_one_line(command: str, words: str) -> None:
    result = shell(f"$H {command}")
    assert (result.returncode, result.stdout) == (2, "")
    assert words in result.stderr and result.stderr.count("\n") == 1


@pytest.mark.parametrize("command", ["plan", "doctor", "cache", "bench -p 4 -n 1 --warm-tokens 0"])
def test_other_commands_need_neither_stdin_nor_stderr(command: str) -> None:
    result = shell(f"$H {command} --json <&- 2>&-")
    assert result.returncode == 0
    json.loads(result.stdout)


def test_an_error_without_stderr_keeps_its_exit_code() -> None:
    assert shell("$H plan --ram 1MiB 2>&-").returncode == 3
    assert shell("$H plan --ram 1MiB 2>/dev/full").returncode == 3


def test_no_file_takes_the_place_of_a_closed_stream(known_answer_model: Path) -> None:
    """Else what is meant for stderr would be written into the trunk file."""
    content = known_answer_model.read_bytes()
    result = shell(f"$H run {known_answer_model} -v -p Once -n 2 <&- 2>&-")
    assert result.returncode == 0
    assert known_answer_model.read_bytes() == content


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere Python itself may need more files")
def test_a_limit_of_open_files_that_is_too_low_is_one_line() -> None:
    """The model is loaded, but plain llama.cpp's process wants pipes too."""
    result = shell("ulimit -n 8; $H bench -p 4 -n 2 --warm-tokens 1 --compare llama.cpp --json")
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr.count("\n") == 1 and result.stderr.startswith("haversack: ")
    assert "this program may have 8 files open: raise that limit (ulimit -n 1024)" in result.stderr
