"""A model run in one budget after the other."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from haversack import edge
from haversack.devices.errors import HaversackError
from haversack.edge import sweep
from haversack.edge.bench import random_tokens
from haversack.edge.measure_options import BenchOptions
from haversack.edge.model_plan import Plan
from haversack.edge.sweep import Sweep, budgets, show_sweep, table_rows
from haversack.tools.models.architectures import TinyShape

TinyModel = Callable[..., Path]
DENSE = Path(__file__).parents[1] / "data/models/tales-twin.gguf"


@pytest.fixture(scope="module")
def planned(tiny_model: TinyModel) -> Plan:
    path = tiny_model(shape=TinyShape(num_hidden_layers=4, num_experts=64), expert_type="F32")
    return edge.plan(path, ram="2GiB", ctx=1024, threads=1)


def test_budgets_go_from_the_floor_to_all(planned: Plan) -> None:
    found = budgets(planned, 4)
    assert len(found) == 4 and found == sorted(found)
    assert found[0] == planned.floor_bytes and found[-1] == planned.full_bytes


def test_each_budget_computes_the_same_logits(planned: Plan, tmp_path: Path) -> None:
    whole = planned.planned_bytes + 2**28  # the tests' own process grows
    several = [planned.floor_bytes + 2**28, whole]
    asked = BenchOptions(prompt_tokens=16, warm_tokens=4, tokens=100)
    points = list(Sweep(planned, asked, tmp_path).run(several, edge.LoadOptions()))
    assert [point.ram_bytes for point in points] == several
    assert points[-1].mode == "resident" and points[-1].hit_rate == 1
    assert all(point.tok_s > 0 for point in points)
    assert len(table_rows(points)) == 2 and table_rows(points)[0][-1].startswith("█")

    another = Sweep(planned, asked, tmp_path)
    another._sha256 = "of other logits"
    with pytest.raises(HaversackError, match="other logits in another budget"):
        list(another.run([whole], edge.LoadOptions()))


def test_texts_that_end_are_timed_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    planned = edge.plan(edge.builtin_model(), ram="2GiB", ctx=1024)
    asked = BenchOptions(prompt_tokens=16, warm_tokens=0, tokens=60, seed=3)
    with edge.load(planned) as model:
        short = partial(model.generate, grammar='root ::= "One day"')
        monkeypatch.setattr(model, "generate", short)
        work = Sweep(planned, asked, tmp_path)._work(model)
        prompt, (start,) = random_tokens(model.vocab_size, 16, seed=3), model.tokenize("")
    assert len(work.tokens) == 76 and work.tokens[:16] == prompt
    assert start in work.tokens[16:]  # a text ended, and another began
    (point,) = Sweep(planned, asked, tmp_path).run([planned.ram_bytes], edge.LoadOptions())
    assert point.tok_s > 0


def test_a_model_without_experts_has_one_budget(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    planned = edge.plan(DENSE, ram="2GiB", ctx=256, threads=1)
    assert budgets(planned, 3) == [planned.full_bytes]
    monkeypatch.setattr(sweep, "budgets", lambda planned, count: [planned.ram_bytes])
    asked = BenchOptions(prompt_tokens=2, tokens=8, sweep=3, png=tmp_path / "sweep.png")
    show_sweep(planned, asked, tmp_path, as_json=True)
    assert f"{DENSE.name} has one budget only" in capsys.readouterr().err


def test_a_sweep_is_shown_and_drawn(
    planned: Plan,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    pytest.importorskip("matplotlib")
    monkeypatch.setattr(sweep, "budgets", lambda planned, count: [planned.full_bytes + 2**28] * 2)
    asked = BenchOptions(
        prompt_tokens=8, warm_tokens=2, tokens=60, sweep=2, png=tmp_path / "sweep.png"
    )
    show_sweep(planned, asked, tmp_path, as_json=False)
    found = capsys.readouterr()
    assert "60 tokens in each budget" in found.out and "drawn in" in found.err
    assert asked.png.read_bytes().startswith(b"\x89PNG")
