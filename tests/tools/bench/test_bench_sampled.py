"""The benchmark of drafts for texts that are drawn at random: a short run."""

from pathlib import Path

import pytest

from haversack import edge
from haversack.tools.bench.sampled import main

MODELS = Path(__file__).parents[2] / "data" / "models"


def test_a_short_run_prints_a_row_for_each_temperature(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [str(edge.builtin_model()), str(MODELS / "tales-twin.gguf"), "--tokens", "4"]
    assert main([*arguments, "--temperature", "0.8", "--temperature", "1.2"]) in (0, 1)
    shown = capsys.readouterr().out
    assert "| 0.8 |" in shown and "| 1.2 |" in shown


def test_another_vocabulary_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(edge.builtin_model()), str(MODELS / "tales-draft.gguf")]) == 2
    assert "the vocabularies differ" in capsys.readouterr().err
