"""The benchmark of tiers runs whole on a tiny model, and its bounds are those that it says."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from haversack.tools.bench import tiers as bench_tiers
from haversack.tools.bench.tiers import CASES, Case, TierResult
from haversack.tools.models.architectures import TinyShape

FIXED = ("--placement", "fixed")


@pytest.mark.slow
def test_it_measures_every_case(
    tiny_model: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path: Path = tiny_model("qwen3moe", shape=TinyShape(num_experts=16, num_experts_per_tok=4))
    rng = np.random.default_rng(5)
    events = [[step, layer, *rng.permutation(16)[:4]] for step in range(40) for layer in range(2)]
    trace, table = tmp_path / "made.npz", tmp_path / "out.csv"
    np.savez(trace, events=np.array(events, np.int32), n_expert=16, top_k=4)
    status = bench_tiers.main(
        [str(path), "--trace", str(trace), "--tokens", "4", "--csv", str(table), *FIXED]
    )
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len(CASES)
    assert all(line.endswith(("holds", "FAILS")) for line in lines)
    assert status == any(line.endswith("FAILS") for line in lines)
    assert len(table.read_text().splitlines()) == 1 + len(CASES)


def test_a_case_holds_within_its_bounds() -> None:
    beside_bound, _, beside_alone = CASES
    result = TierResult(
        "t", 0.25, 1.0, 12e9, s_per_token=0.025, alone_s=0.03, trunk_s=0.01, host_s=0.02,
        gpu_s=0.01, link_s=0.005, drive_s=0.0, on_gpu=0.5, measured_on_gpu=0.5, moved_bytes=1e6,
        read_bytes=0.0, waited_s=0.0, late_s=0.0,
    )  # fmt: skip
    assert result.bound_s == 0.02
    assert result.holds(beside_bound)
    assert not replace(result, s_per_token=0.0251).holds(beside_bound)
    assert replace(result, link_s=0.021, s_per_token=0.0251).holds(beside_bound)
    assert replace(result, s_per_token=0.0305).holds(beside_alone)
    assert not replace(result, s_per_token=0.0307).holds(beside_alone)
    assert result.holds(Case(0.1, 1.0, beside_bound.link))


def test_a_trace_that_is_missing_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = [str(tmp_path / "no.gguf"), "--trace", str(tmp_path / "no.npz")]
    assert bench_tiers.main(command) == 2
    assert "no.npz" in capsys.readouterr().err
