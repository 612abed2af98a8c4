"""The benchmark of prompts runs whole on a small model, and its verdicts can be yes and no."""

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from haversack import edge
from haversack.edge.planner import streamed
from haversack.tools.bench import prefill as bench_prefill
from haversack.tools.bench.prefill import PrefillResult, prefill


class Used:
    """Counts the distinct experts that layers choose for a batch; a watcher."""

    def __init__(self) -> None:
        self.num_experts = 0

    def __call__(self, layer: int, ids: npt.NDArray[np.int32], _: object) -> None:
        self.num_experts += len(np.unique(ids))


def test_a_prompt_on_a_cold_model_reads_what_it_needs_once(
    tiny_model: Any, trunk_dir: Path
) -> None:
    planned = streamed(edge.plan(tiny_model(), ram="1TiB", ctx=64), 0.5)
    with edge.load(
        planned, options=edge.LoadOptions(cache_dir=trunk_dir, warm_start=False)
    ) as model:
        used = Used()
        model.watch_routing(used)
        spent = prefill(model, range(48))
    assert spent.prompt_tokens == 48
    assert spent.needed == used.num_experts
    assert spent.bytes_read == used.num_experts * planned.geometry.layers[0].expert_bytes > 0


def test_the_bound_is_the_slower_of_computing_and_reading() -> None:
    by_computing = PrefillResult(3.0, 2.0, 1e9, 10**9, 10**9, 0)
    assert by_computing.ratio == 1.5 and by_computing.read_once
    by_reading = PrefillResult(3.0, 2.0, 1e9, 4 * 10**9, 4 * 10**9, 0)
    assert by_reading.ratio == 0.75


def test_what_is_read_twice_or_prefetched_wrongly_too_often_does_not_hold() -> None:
    assert PrefillResult(1.0, 1.0, 1e9, 1010, needed_bytes=1000, wrong_bytes=20).read_once
    assert not PrefillResult(1.0, 1.0, 1e9, 1001, needed_bytes=1000, wrong_bytes=0).read_once
    assert not PrefillResult(1.0, 1.0, 1e9, 1030, needed_bytes=1000, wrong_bytes=30).read_once


def test_it_prints_a_line_for_each_round_and_a_verdict_for_each_bound(
    tiny_model: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    command = [str(tiny_model()), "--tokens", "48", "--rounds", "2", "--share", "0.5"]
    assert bench_prefill.main(command) in (0, 1)  # the times of so small a model say nothing
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 4
    assert all("of the bound; read" in line for line in lines[:2])
    assert all(line.endswith(("holds", "FAILS")) for line in lines[2:])


def test_a_model_that_is_missing_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert bench_prefill.main([str(tmp_path / "no.gguf")]) == 2
    assert "no.gguf" in capsys.readouterr().err
