"""The benchmark of reading ahead runs whole, on a small made trace."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from haversack.tools.bench import prefetch as bench_prefetch
from haversack.tools.bench.prefetch import PrefetchResult


@pytest.mark.slow
def test_it_measures_every_cell_and_leaves_no_model(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rng = np.random.default_rng(5)
    events = [[step, layer, *rng.permutation(8)[:2]] for step in range(40) for layer in range(2)]
    trace = tmp_path / "made.npz"
    np.savez(trace, events=np.array(events, np.int32), n_expert=8, top_k=2)
    command = [str(tmp_path), "--trace", str(trace), "--tokens", "4", "--rounds", "1"]
    command += ["--share", "0.5", "--share", "0.75", "--csv", str(tmp_path / "out.csv")]
    status = bench_prefetch.main(command)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2
    assert all(line.endswith(("holds", "FAILS")) for line in lines)
    assert status == any(line.endswith("FAILS") for line in lines)
    assert len((tmp_path / "out.csv").read_text().splitlines()) == 3
    assert not list(tmp_path.glob("*.gguf"))


def test_the_bounds() -> None:
    busy = PrefetchResult(
        "t", 0.25, 0.1, 0.1, gain=0.0, idle=0.1, prefetch_recall=1, prefetching=True
    )
    assert busy.holds
    assert replace(busy, gain=-0.019).holds and not replace(busy, gain=-0.021).holds
    idle = replace(busy, idle=0.31)
    assert replace(idle, gain=0.081).holds and not replace(idle, gain=0.079).holds
    assert replace(busy, idle=1.0).holds  # nothing is read


def test_a_trace_that_is_missing_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert bench_prefetch.main([str(tmp_path), "--trace", str(tmp_path / "no.npz")]) == 2
    assert "no.npz" in capsys.readouterr().err


def test_a_wrong_rate_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert bench_prefetch.main([str(tmp_path), "--rate", "fast"]) == 2
    assert capsys.readouterr().err.count("\n") == 1
