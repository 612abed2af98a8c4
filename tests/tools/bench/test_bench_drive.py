"""The benchmark of a real drive runs whole on a small model; what it counts is what happened."""

import sys
from pathlib import Path
from typing import Any

import pytest

from haversack import edge
from haversack.edge.planner import streamed
from haversack.tools.bench import drive as bench_drive
from haversack.tools.bench.drive import DriveResult

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="nothing is streamed on Windows")


@pytest.mark.slow
def test_it_prints_a_verdict_for_each_bound(
    tiny_model: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    command = [str(tiny_model()), "--share", "0.1", "--tokens", "4", "--rounds", "2"]
    status = bench_drive.main(command)
    lines = capsys.readouterr().out.splitlines()
    assert all("beside computing" in line for line in lines[:2])
    assert len(lines) == 5
    assert all(line.endswith(("holds", "FAILS")) for line in lines[2:])
    assert status == any(line.endswith("FAILS") for line in lines)


def test_tokens_are_counted_with_what_they_cost(tiny_model: Any, trunk_dir: Path) -> None:
    planned = streamed(edge.plan(tiny_model(), ram="1TiB", ctx=64), 0.1)
    with edge.load(planned, options=edge.LoadOptions(cache_dir=trunk_dir)) as model:
        spent = bench_drive.decode(model, 5)
        assert spent.stats.tokens == 5
        assert 0 < spent.stats.bytes_read <= model.stats().bytes_read
    assert spent.cpu_s > 0 and spent.minor_faults >= 0


def test_each_bound_can_fail(capsys: pytest.CaptureFixture[str]) -> None:
    fine = DriveResult(1e9, 1e9, 0.9e9, 0.1, 3.0, 0.01)
    assert bench_drive.report([fine])
    assert "FAILS" not in capsys.readouterr().out
    for slip in (
        DriveResult(1e9, 1e9, 0.8e9, 0.1, 3.0, 0.01),
        DriveResult(1e9, 1e9, 0.9e9, 0.3, 3.0, 0.01),
        DriveResult(1e9, 1e9, 0.9e9, 0.1, 60.0, 0.01),
    ):
        assert not bench_drive.report([slip])
        assert capsys.readouterr().out.count("FAILS") == 1
        assert bench_drive.report([slip, fine, fine])


def test_nothing_to_read_is_one_line(tiny_model: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert bench_drive.main([str(tiny_model()), "--share", "1", "--tokens", "4"]) == 2
    assert "lower --share" in capsys.readouterr().err
