"""A model run in one budget after the other."""

from collections.abc import Callable
from pathlib import Path

import pytest

from haversack import edge
from haversack.devices.errors import HaversackError
from haversack.edge import sweep
from haversack.edge.measure_options import BenchOptions
from haversack.edge.model_plan import Plan
from haversack.edge.sweep import Sweep, budgets, show_sweep, table_rows
from haversack.tools.models.architectures import TinyShape

TinyModel = Callable[..., Path]


@pytest.fixture(scope="module")
def planned(tiny_model: TinyModel) -> Plan:
    path = tiny_model(shape=TinyShape(num_hidden_layers=4, num_experts=64), expert_type="F32")
    return edge.plan(path, ram="2GiB", ctx=1024, threads=1)


def test_budgets_go_from_the_floor_to_all(planned: Plan) -> None:
    found = budgets(planned, 4)
    assert len(found) == 4 and found == sorted(found)
    assert found[0] == planned.floor_bytes and found[-1] == planned.full_bytes


def test_each_budget_writes_the_same_text(
    planned: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = planned.planned_bytes + 2**28  # the tests' own process grows
    several = [planned.floor_bytes + 2**28, whole]
    points = list(Sweep(planned, 4, 600, tmp_path).run(several, edge.LoadOptions()))
    assert [point.ram_bytes for point in points] == several
    assert points[-1].mode == "resident" and points[-1].hit_rate == 1
    assert all(point.tok_s > 0 for point in points)
    assert len(table_rows(points)) == 2 and table_rows(points)[0][-1].startswith("█")

    another = Sweep(planned, 4, 600, tmp_path)
    another._text = [1, 2, 3]
    with pytest.raises(HaversackError, match="another text in another budget"):
        list(another.run([whole], edge.LoadOptions()))


def test_a_sweep_is_shown_and_drawn(
    planned: Plan,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    pytest.importorskip("matplotlib")
    monkeypatch.setattr(sweep, "budgets", lambda planned, count: [planned.full_bytes + 2**28] * 2)
    asked = BenchOptions(warm_tokens=2, tokens=600, sweep=2, png=tmp_path / "sweep.png")
    show_sweep(planned, asked, tmp_path, as_json=False)
    found = capsys.readouterr()
    assert "600 tokens in each budget" in found.out and "drawn in" in found.err
    assert asked.png.read_bytes().startswith(b"\x89PNG")
