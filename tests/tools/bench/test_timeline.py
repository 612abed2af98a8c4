"""A token's timeline: every interval in its layer's lane, demand and guesses apart."""

from pathlib import Path
from typing import Any

import pytest

from haversack import edge
from haversack.edge.planner import streamed
from haversack.tools.bench import plot, timeline
from haversack.tools.bench.steady_drive import SteadyDrive
from haversack.tools.bench.timeline import Interval, TokenNotes

KINDS = {"router", "compute", "late", "demand", "ahead"}


def test_a_read_is_ahead_if_it_began_before_its_layer_chose(tiny_model: Any) -> None:
    path = tiny_model()
    geometry = edge.plan(path, ram="1TiB", ctx=64).geometry
    first, second = (layer.matrices[0].offset for layer in geometry.layers[:2])
    notes = TokenNotes(
        begin_s=10.0,
        end_s=12.0,
        routers=[(0, 10.5), (1, 11.5)],
        products=[(10.75, 11.0)],
        reads=[(first, path, 10.5, 10.75), (second, path, 11.0, 11.75), (second, path, 11.5, 12.0)],
    )
    assert timeline.timeline(notes, geometry) == [
        Interval(0, "router", 0.5, 0.5),
        Interval(1, "router", 1.5, 1.5),
        Interval(0, "late", 0.75, 1.0),
        Interval(0, "compute", 0.0, 0.75),
        Interval(0, "compute", 1.0, 1.5),
        Interval(1, "compute", 1.5, 2.0),
        Interval(0, "demand", 0.5, 0.75),
        Interval(1, "ahead", 1.0, 1.75),
        Interval(1, "demand", 1.5, 2.0),
    ]


def test_the_byte_before_the_experts_is_nobodys(tiny_model: Any) -> None:
    path = tiny_model()
    geometry = edge.plan(path, ram="1TiB", ctx=64).geometry
    with pytest.raises(ValueError, match="no expert's"):
        timeline.layer_at(geometry, path, 0)


def test_every_layer_of_a_real_token_chooses_computes_and_reads(
    tiny_model: Any, trunk_dir: Path
) -> None:
    planned = streamed(edge.plan(tiny_model(), ram="1TiB", ctx=64), 0.0)
    layers = [layer.layer for layer in planned.geometry.layers]
    drive = SteadyDrive(20e6)
    tokens = timeline.observe(planned, drive.open, "", 4, trunk_dir)
    assert len(tokens) == 4
    for notes in tokens:
        intervals = timeline.timeline(notes, planned.geometry)
        assert [i.layer for i in intervals if i.kind == "router"] == layers
        assert {i.layer for i in intervals if i.kind == "compute"} == set(layers)
        end_s = max(i.end_s for i in intervals if i.kind == "compute")
        assert all(0 <= i.begin_s <= i.end_s for i in intervals)
        assert all(i.end_s <= end_s for i in intervals if i.kind == "demand")
    seen = {i.kind for notes in tokens for i in timeline.timeline(notes, planned.geometry)}
    assert {"router", "compute", "late", "demand"} <= seen <= KINDS


def test_the_program_writes_what_plot_draws(tiny_model: Any, tmp_path: Path) -> None:
    out, picture = tmp_path / "out.csv", tmp_path / "out.png"
    command = [str(tiny_model()), str(out), "--ram", "1TiB", "--rate", "1GB", "-n", "2"]
    assert timeline.main(command) == 0
    assert plot.main(["timeline", str(out), str(picture)]) == 0
    assert picture.read_bytes().startswith(b"\x89PNG") and picture.stat().st_size > 10_000


def test_a_budget_too_small_is_one_line(
    tiny_model: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = [str(tiny_model()), str(tmp_path / "out.csv"), "--ram", "1MiB"]
    assert timeline.main(command) == 2
    assert "needs at least" in capsys.readouterr().err
