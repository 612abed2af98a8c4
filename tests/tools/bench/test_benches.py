"""The benchmarks' bounds that hold on small models too, on this machine and in CI."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from haversack import edge
from haversack.devices.system.cgroup import why_not
from haversack.edge.plain_llama import PlainLlama
from haversack.edge.planner import streamed
from haversack.tools.bench import budget as bench_budget
from haversack.tools.bench import limited
from haversack.tools.bench import overhead as bench_overhead
from haversack.tools.bench import start as bench_start
from haversack.tools.models.architectures import TinyShape
from haversack.tools.models.synth import write_large

MIB = 1024 * 1024


@pytest.fixture(scope="module")
def middling(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three layers of the shape of Qwen3-30B-A3B: 1.1 GB, of which 0.9 GB are experts."""
    return write_large(tmp_path_factory.mktemp("large") / "large.gguf", layers=3)[0]


needs_groups = pytest.mark.skipif(bool(why_not()), reason=why_not() or "groups can be made")


@needs_groups
@pytest.mark.slow
@pytest.mark.parametrize("share", [0.0, 0.3, 0.8])
def test_a_hard_limit_of_the_budget_suffices(share: float, middling: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "haversack.edge", "plan", str(middling), "--ram", "64GiB"]
    shown = subprocess.run([*command, "--ctx", "512", "--json"], capture_output=True, check=True)
    whole = json.loads(shown.stdout)  # planned by a process as small as the one that runs
    floor_bytes, full_bytes = whole["floor_bytes"], whole["full_bytes"]
    ram_bytes = int(floor_bytes + share * (full_bytes - floor_bytes))
    result = bench_budget.run_in_budget(middling, ram_bytes, 16, "--cache-dir", str(tmp_path))
    assert result["mode"] == "streamed" and result["tokens"] == 16
    assert result["ram_peak_bytes"] <= result["ram_planned_bytes"] <= ram_bytes


@needs_groups
@pytest.mark.slow
def test_a_bench_in_a_group_has_its_speed_and_that_of_plain_llama(tiny_model: Any) -> None:
    found = limited.compared(tiny_model(), 200 * MIB, 2)
    assert found["decode_tok_s"] > 0 and found["compare_decode_tok_s"] > 0
    with pytest.raises(RuntimeError, match=r"exit 3 under 1.0 MiB.*raise --ram"):
        limited.json_within("run", tiny_model(), MIB, "-p", "1")


def test_more_memory_may_cost_three_percent(capsys: pytest.CaptureFixture[str]) -> None:
    assert bench_budget.never_slower({3 * MIB: 10.0, MIB: 9.0, 2 * MIB: 10.3})
    assert not bench_budget.never_slower({MIB: 10.0, 2 * MIB: 9.8, 3 * MIB: 9.6})
    assert capsys.readouterr().out.count("FAILS") == 1


@pytest.mark.skipif(sys.platform != "linux", reason="counts in /proc/self/io")
def test_a_start_reads_nothing_needless(tiny_model: Any, tmp_path: Path) -> None:
    shape = TinyShape(num_hidden_layers=16, num_experts=16, vocab_size=4096)
    path = tiny_model("qwen3moe", expert_type="F32", shape=shape)
    whole = edge.plan(path, ram="64GiB", ctx=512)
    start = bench_start.measure_start(
        path, whole.full_bytes - 60 * MIB, edge.LoadOptions(cache_dir=tmp_path)
    )
    assert path.stat().st_size > start.needed_bytes + 100 * MIB  # or the bound would say nothing
    assert start.lean, start


@pytest.mark.slow
def test_the_hook_is_cheap(middling: Path, tmp_path: Path) -> None:
    """Wide of the benchmark's bounds, which want a quiet machine and a real model."""
    planned = streamed(edge.plan(middling, ram="64GiB", ctx=512))
    options = edge.LoadOptions(cache_dir=tmp_path)
    with PlainLlama(middling, 512, planned.shape.threads) as plain:
        found = bench_overhead.overhead(plain, planned, 8, 3, options)
    assert found.ratio > 0 and 0 < found.own_share < 1


def test_the_bounds_of_overhead() -> None:
    assert bench_overhead.Overhead(0.95, 0.02).holds(0.95)
    assert not bench_overhead.Overhead(0.95, 0.03).holds(0.95)
    assert not bench_overhead.Overhead(0.94, 0.02).holds(0.95)
