"""Command lines of tools: what is no count is one line, and so is what is wrong with a model."""

import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from haversack import edge
from haversack.devices.errors import ModelFileError
from haversack.tools.bench import drive as bench_drive
from haversack.tools.command_line import (
    positive,
    print_table,
    run_on_models,
    tool,
    verdict,
    write_rows,
)

ROWS = [{"layer": "1", "hits": "0.5"}, {"layer": "2", "hits": ""}]


def test_a_count_is_a_whole_number_from_one() -> None:
    assert [positive("1"), positive("64")] == [1, 64]


@pytest.mark.parametrize("text", ["0", "-1", "1.5", "many", "", "²"])
def test_anything_else_is_one_line(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as raised:
        bench_drive.main(["model.gguf", f"--rounds={text}"])
    assert raised.value.code == 2
    assert f"argument --rounds: {text!r} is no count" in capsys.readouterr().err


def test_a_tool_ends_with_its_status_or_with_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    @tool
    def main(arguments: Sequence[str] | None) -> int:
        if arguments:
            raise ModelFileError(f"{arguments[0]} is no model")
        return 1

    assert main() == 1
    assert main(["a.gguf"]) == 2
    assert capsys.readouterr().err == "error: a.gguf is no model\n"


@pytest.mark.parametrize("name", ["clients", "pressure"])
def test_a_tool_without_its_package_says_in_one_line_what_to_install(name: str) -> None:
    without = "import sys, runpy; sys.modules['httpx'] = None; runpy.run_module(sys.argv[1])"
    command = [sys.executable, "-c", without, f"haversack.tools.bench.{name}"]
    found = subprocess.run(command, capture_output=True, text=True)
    assert (found.returncode, found.stdout) == (1, "")
    assert found.stderr.count("\n") == 1 and "needs httpx" in found.stderr
    assert "pip install 'haversack[test]'" in found.stderr


def test_models_are_measured_with_counts_and_all_bounds_must_hold() -> None:
    seen = list[tuple[Path, int]]()

    def measured(path: Path, rounds: int) -> Iterator[bool]:
        seen.append((path, rounds))
        yield path.name != "slow.gguf"

    def run(*arguments: str, always: Sequence[Path] = ()) -> int:
        return run_on_models(arguments, "Measures.", measured, {"rounds": (7, "timed")}, always)

    assert run() == 0 and seen.pop() == (edge.builtin_model(), 7)
    assert run("fast.gguf", "slow.gguf", "--rounds=2") == 1
    assert seen == [(Path("fast.gguf"), 2), (Path("slow.gguf"), 2)]
    assert run("fast.gguf", always=[Path("slow.gguf")]) == 1


def test_a_verdict_is_printed_and_returned(capsys: pytest.CaptureFixture[str]) -> None:
    assert verdict("1 <= 2", True) and not verdict("3 <= 2", False)
    assert capsys.readouterr().out == "1 <= 2: holds\n3 <= 2: FAILS\n"


def test_columns_of_a_table_are_the_first_rows(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_rows(tmp_path / "table.csv", ROWS)
    assert (tmp_path / "table.csv").read_bytes() == b"layer,hits\n1,0.5\n2,\n"
    print_table(ROWS)
    assert capsys.readouterr().out == "| layer | hits |\n|---|---|\n| 1 | 0.5 |\n| 2 |  |\n"
