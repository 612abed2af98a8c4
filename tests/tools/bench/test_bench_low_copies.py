"""The comparison of low copies has a row for every source, with figures that fit the formats."""

import csv
from collections.abc import Callable
from pathlib import Path

import pytest

from haversack.tools.bench.low_copies import main
from haversack.tools.models.synth import TinyShape

SMALL = TinyShape(num_hidden_layers=2, num_experts=4, vocab_size=64)
TinyModel = Callable[..., Path]


def test_every_source_is_compared(
    tiny_model: TinyModel, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = tiny_model(shape=SMALL, expert_type="Q4_K")
    second = tiny_model(shape=SMALL, expert_type="Q2_K")
    table = tmp_path / "low.csv"
    assert main([str(model), "--low-from", str(second), "--csv", str(table)]) == 0
    assert "q4_k: left out: q4_K makes no expert" in capsys.readouterr().err
    with table.open() as file:
        rows = {row["source"]: row for row in csv.DictReader(file)}
    assert {"nested", "q2_k", "q2_k, weighted", "iq2_xxs, weighted"} < set(rows)
    (gguf,) = (row for source, row in rows.items() if source.startswith("gguf "))
    assert gguf["use"] == rows["q2_k"]["use"] == rows["nested"]["use"] == "0.583"
    assert (rows["nested"]["upgrade"], rows["q2_k"]["upgrade"]) == ("0.556", "1.000")
    for row in rows.values():
        assert 0.05 < float(row["error, random"]) < 0.5
        assert 0.05 < float(row["error, real"]) < 0.5


def test_a_wrong_second_gguf_is_an_error(
    tiny_model: TinyModel, capsys: pytest.CaptureFixture[str]
) -> None:
    model = tiny_model(shape=SMALL, expert_type="Q4_K")
    assert main([str(model), "--low-from", str(model)]) == 2
    assert "gives no low copies" in capsys.readouterr().err
