"""The streaming benchmark runs whole, on a small model and a trace that suits it."""

import csv
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from haversack.devices.system.cgroup import why_not
from haversack.tools.bench import stream as bench_stream


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    """Of a layer fewer than the small model has."""
    rng = np.random.default_rng(5)
    events = [[step, layer, *rng.permutation(8)[:2]] for step in range(40) for layer in range(2)]
    path = tmp_path / "made.npz"
    np.savez(path, events=np.array(events, np.int32), n_expert=8, top_k=2)
    return path


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.slow
def test_it_measures_every_cell_and_writes_them(
    tiny_model: Any, trace: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = [str(tiny_model()), "--trace", str(trace), "--tokens", "16", "--rate", "1GB"]
    command += ["--share", "0.5", "--share", "1", "--csv", str(tmp_path / "out.csv")]
    assert bench_stream.main(command) == 0
    assert capsys.readouterr().out.count("of the bound") == 4
    rows = rows_of(tmp_path / "out.csv")
    assert len(rows) == 4
    assert all(float(row["floor_s"]) >= float(row["bound_s"]) > 0 for row in rows)


@pytest.mark.slow
@pytest.mark.skipif(bool(why_not()), reason=why_not() or "groups can be made")
def test_plain_llama_does_the_same_in_the_same_memory(
    tiny_model: Any, trace: Path, tmp_path: Path
) -> None:
    command = [str(tiny_model()), "--trace", str(trace), "--tokens", "4", "--rate", "1GB"]
    command += ["--share", "0.5", "--share", "1", "--csv", str(tmp_path / "out.csv")]
    command += ["--limit", "--plain-tokens", "4"]
    subprocess.run([sys.executable, "-m", "haversack.tools.bench.stream", *command], check=True)
    half, whole = rows_of(tmp_path / "out_limited.csv")
    assert (half["forced"], whole["forced"]) == ("True", "False")
    assert float(half["hit_rate"]) < 1 and float(half["bytes_per_token"]) > 0
    assert all(float(row["plain_s_per_token"]) > 0 for row in (half, whole))


def test_a_trace_that_is_missing_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = [str(tmp_path / "no.gguf"), "--trace", str(tmp_path / "no.npz")]
    assert bench_stream.main(command) == 2
    assert "no.npz" in capsys.readouterr().err
