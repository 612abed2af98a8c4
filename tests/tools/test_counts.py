"""Counts on a tool's command line: what is none is one line, before anything runs."""

import pytest

from haversack.tools.bench import drive as bench_drive
from haversack.tools.counts import positive


def test_a_count_is_a_whole_number_from_one() -> None:
    assert [positive("1"), positive("64")] == [1, 64]


@pytest.mark.parametrize("text", ["0", "-1", "1.5", "many", "", "²"])
def test_anything_else_is_one_line(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as raised:
        bench_drive.main(["model.gguf", f"--rounds={text}"])
    assert raised.value.code == 2
    assert f"argument --rounds: {text!r} is no count" in capsys.readouterr().err
