"""The benchmark of low copies runs whole, on a small model with prepared copies."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from haversack import edge
from haversack.tools.bench import fidelity as bench_fidelity


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    rng = np.random.default_rng(5)
    events = [[step, layer, *rng.permutation(8)[:2]] for step in range(40) for layer in range(3)]
    weights = np.tile(np.array([0.8, 0.2], np.float32), (len(events), 1))
    path = tmp_path / "made.npz"
    np.savez(path, events=np.array(events, np.int32), n_expert=8, top_k=2, weights=weights)
    return path


@pytest.mark.slow
def test_it_times_all_modes_and_judges_them(
    tiny_model: Any,
    trace: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(bench_fidelity, "default_cache_dir", lambda: tmp_path)
    path = tiny_model()
    edge.prepare(path, options=edge.PrepareOptions(cache_dir=tmp_path))
    command = [str(path), "--trace", str(trace), "--tokens", "16", "--rounds", "1"]
    assert bench_fidelity.main([*command, "--share", "0.5"]) in (0, 1)
    shown = capsys.readouterr().out
    assert [shown.count(f"\n{mode}: ") for mode in ("balanced", "fast")] == [2, 2]
    assert "1.35 of exact's speed" in shown


def test_without_low_copies_it_says_what_to_do(
    tiny_model: Any, trace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setattr(bench_fidelity, "default_cache_dir", lambda: tmp_path / "none")
    assert bench_fidelity.main([str(tiny_model()), "--trace", str(trace)]) == 2
    assert "haversack prepare" in capsys.readouterr().err
