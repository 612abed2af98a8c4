"""What `haversack plan` shows beside the bytes."""

from collections.abc import Callable
from pathlib import Path

import pytest

from haversack import edge
from haversack.devices.errors import BudgetError
from haversack.edge.forecasting import Facts
from haversack.edge.model_plan import Plan
from haversack.edge.plan_view import PlanView
from haversack.tools.models.architectures import TinyShape

TinyModel = Callable[..., Path]
SLOW_DRIVE = Facts(drive_bytes_s=1e7, weights_bytes_s=1e9)


@pytest.fixture(scope="module")
def view(tiny_model: TinyModel) -> PlanView:
    path = tiny_model(shape=TinyShape(num_hidden_layers=4, num_experts=64), expert_type="F32")
    whole = edge.plan(path, ram="2GiB", ctx=1024, threads=1)
    ram_bytes = (whole.floor_bytes + whole.full_bytes) // 2

    def replan(ctx: int) -> Plan:
        return edge.plan(path, ram=ram_bytes, ctx=ctx, threads=1)

    return PlanView(replan(1024), SLOW_DRIVE, replan)


def test_a_longer_context_costs_experts(view: PlanView) -> None:
    found = view.contexts()
    assert [each.ctx_tokens for each in found][:3] == [512, 1024, 2048]
    slots = [each.to_dict()["slots"] for each in found]
    assert slots == sorted(slots, reverse=True) and slots[0] > slots[-1]
    speeds = [each.forecast.tok_s for each in found if each.forecast is not None]
    assert len(speeds) == len(found) and speeds == sorted(speeds, reverse=True)


def test_contexts_end_where_the_budget_does(view: PlanView) -> None:
    def replan(ctx: int) -> Plan:
        if ctx > 2048:
            raise BudgetError("too long", need_bytes=2, have_bytes=1)
        return view.planned

    assert [each.ctx_tokens for each in PlanView(view.planned, Facts(), replan).contexts()] == [
        512,
        1024,
        2048,
    ]


def test_what_would_be_faster_is_told(view: PlanView) -> None:
    *budgets, drive = view.advice()
    assert budgets and all(line.startswith("--ram ") for line in budgets)
    assert "the drive takes" in drive and "haversack prepare" in drive


def test_people_and_programs_get_the_same(
    view: PlanView, capsys: pytest.CaptureFixture[str]
) -> None:
    view.show()
    out, figures = capsys.readouterr().out, view.to_dict()
    assert "forecast " in out and "likely: other models ran" in out and "faster: --ram" in out
    assert figures["forecast"]["confidence"] == "likely" and len(figures["contexts"]) >= 3
    unknown = PlanView(view.planned, Facts(), lambda ctx: view.planned)
    unknown.show()
    assert "no forecast" in capsys.readouterr().out
    assert unknown.to_dict()["forecast"] is None and unknown.advice() == []


def test_a_budget_beyond_the_computers_memory_is_told(
    view: PlanView, tiny_model: TinyModel, capsys: pytest.CaptureFixture[str]
) -> None:
    assert view.to_dict()["warning"] is None
    planned = edge.plan(tiny_model(), ram=2**50, ctx=256, threads=1)
    beyond = PlanView(planned, Facts(), lambda _: planned)
    beyond.show()
    assert " are more than the " in capsys.readouterr().err
    assert "lower --ram" in str(beyond.to_dict()["warning"])
