"""The streaming benchmark runs whole, on a small model and a trace that suits it."""

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from haversack.tools import bench_stream


@pytest.mark.slow
def test_it_measures_every_cell_and_writes_them(
    tiny_model: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rng = np.random.default_rng(5)
    events = [[step, layer, *rng.permutation(8)[:2]] for step in range(40) for layer in range(3)]
    trace = tmp_path / "made.npz"
    np.savez(trace, events=np.array(events, np.int32), n_expert=8, top_k=2)
    command = [str(tiny_model()), "--trace", str(trace), "--tokens", "16", "--rate", "1GB"]
    command += ["--share", "0.5", "--share", "1", "--csv", str(tmp_path / "out.csv")]
    assert bench_stream.main(command) == 0
    assert capsys.readouterr().out.count("of the bound") == 4
    with (tmp_path / "out.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 4
    assert all(float(row["floor_s"]) >= float(row["bound_s"]) > 0 for row in rows)


def test_a_trace_that_is_missing_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = [str(tmp_path / "no.gguf"), "--trace", str(tmp_path / "no.npz")]
    assert bench_stream.main(command) == 2
    assert "no.npz" in capsys.readouterr().err
