"""The options of fidelity: which commands have them, and what they plan."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import typer.main

from haversack import edge
from haversack.cache.routing import Leaning
from haversack.edge.cli import app
from haversack.edge.fidelity_options import FidelityOptions
from haversack.edge.options import ModelOptions
from haversack.edge.planner import streamed
from haversack.tools.models.architectures import TinyShape

SMALL = TinyShape(num_hidden_layers=2, num_experts=8, vocab_size=64)


@pytest.mark.parametrize("command", ["run", "chat", "serve", "plan", "bench", "eval"])
def test_every_command_that_loads_or_plans_a_model_has_them(command: str) -> None:
    group: Any = typer.main.get_command(app)
    names = {option for each in group.commands[command].params for option in each.opts}
    assert {"--fidelity", "--low-from", "--low-share", "--skip-share", "--route-bias"} <= names


@pytest.fixture
def given(tiny_model: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> ModelOptions:
    """A model that is streamed, whatever the memory."""
    options = ModelOptions(tiny_model(shape=SMALL, expert_type="Q8_0"), ram="1GiB", ctx=256)
    planned = streamed(edge.plan(options.path, ram="1GiB", ctx=256, threads=1), 0.7)
    monkeypatch.setattr(ModelOptions, "plan", lambda *_: planned)
    return options


def test_a_command_plans_a_model_that_leans(given: ModelOptions, tmp_path: Path) -> None:
    planned = FidelityOptions(tmp_path, route_bias=0.2).plan(given)
    assert planned.leaning == Leaning(0.2) and planned.precision is None
    assert FidelityOptions(tmp_path).plan(given).leaning is None
