"""The benchmark of prompts runs whole on a small model, and its verdicts can be yes and no."""

from pathlib import Path
from typing import Any

import pytest

from haversack import edge
from haversack.edge.planner import streamed
from haversack.tools import bench_prefill
from haversack.tools.bench_prefill import PrefillResult, streamed_prefill


def test_a_prompt_on_a_cold_model_reads_what_it_needs_once(
    tiny_model: Any, trunk_dir: Path
) -> None:
    planned = streamed(edge.plan(tiny_model(), ram="1TiB", ctx=64), 0.5)
    with edge.load(
        planned, options=edge.LoadOptions(cache_dir=trunk_dir, warm_start=False)
    ) as model:
        spent, needed_bytes = streamed_prefill(model, range(48))
    assert spent.prompt_tokens == 48
    assert 0 < spent.bytes_read == needed_bytes <= planned.expert_bytes


def test_the_bound_is_the_slower_of_computing_and_reading() -> None:
    by_computing = PrefillResult(3.0, 2.0, 1e9, read_bytes=10**9, needed_bytes=10**9)
    assert by_computing.ratio == 1.5 and by_computing.read_once
    by_reading = PrefillResult(3.0, 2.0, 1e9, read_bytes=4 * 10**9, needed_bytes=4 * 10**9 - 1)
    assert by_reading.ratio == 0.75 and not by_reading.read_once


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
