"""The benchmark of a drafter's memory: what is planned is taken, and no more."""

from pathlib import Path

import pytest

from haversack import edge
from haversack.tools.bench.drafter_memory import main

OTHER = Path(__file__).parents[2] / "data" / "models" / "tales-draft.gguf"


def test_a_drafter_takes_what_was_planned(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(edge.builtin_model()), str(OTHER)]) == 0
    shown = capsys.readouterr().out
    assert "| tales-draft.gguf | 512 |" in shown and shown.count(": holds") == 2


def test_an_error_of_the_process_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    missing = tmp_path / "none.gguf"
    assert main([str(edge.builtin_model()), str(missing)]) == 2
    assert "none.gguf" in capsys.readouterr().err
