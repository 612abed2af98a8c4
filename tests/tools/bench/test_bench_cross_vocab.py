"""The benchmark of drafters with another vocabulary: a short run."""

from pathlib import Path

import pytest

from haversack import edge
from haversack.tools.bench.cross_vocab import main

MODELS = Path(__file__).parents[2] / "data" / "models"


def test_a_short_run_prints_a_row_for_each_mapping(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prompts = tmp_path / "tales.jsonl"
    prompts.write_text('{"prompt": "The fox was astonished"}\n{"prompt": "A woodcutter had"}\n')
    counts = ["--tokens", "6", "--held-out", "1", "--learn", "1", "--ctx", "128"]
    arguments = [edge.builtin_model(), MODELS / "tales-draft.gguf", "--texts", prompts, *counts]
    assert main([str(each) for each in arguments]) in (0, 1)
    assert "runs learnt before too" in capsys.readouterr().out


def test_a_drafter_that_learnt_has_a_row(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("torch")
    prompts = tmp_path / "tales.jsonl"
    prompts.write_text('{"prompt": "The fox was astonished"}\n{"prompt": "A woodcutter had"}\n')
    counts = ["--tokens", "12", "--held-out", "1", "--learn", "1", "--ctx", "128", "--adapt", "2"]
    arguments = [edge.builtin_model(), MODELS / "tales-draft.gguf", "--texts", prompts, *counts]
    assert main([str(each) for each in arguments]) in (0, 1)
    assert "adapted, all runs" in capsys.readouterr().out


def test_one_vocabulary_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    prompts = tmp_path / "tales.jsonl"
    prompts.write_text('{"prompt": "The fox"}\n{"prompt": "A hen"}\n')
    arguments = [edge.builtin_model(), MODELS / "tales-twin.gguf", "--texts", prompts]
    assert main([*map(str, arguments), "--tokens", "4", "--ctx", "128"]) == 2
    assert "the same vocabulary" in capsys.readouterr().err
