"""Settling routers, on a small decoder with experts that a bias keeps from being chosen."""

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import Tensor

from haversack.devices.errors import HaversackError
from haversack.tools.routing.measures import expert_load
from haversack.tools.training.balance import settle_routers
from haversack.tools.training.decoder import Decoder, DecoderShape, Routing

SHAPE = DecoderShape(
    vocab_size=64,
    hidden_size=32,
    num_hidden_layers=3,
    head_dim=8,
    num_experts=8,
    num_experts_per_tok=2,
    moe_intermediate_size=16,
)
LEAST = 0.25
TOKENS = torch.randint(64, (12, 64), generator=torch.Generator().manual_seed(1))
WINDOWS = [TOKENS[:4], TOKENS[4:, :40]]  # of two lengths, as stories and chats have
ROUTERS = [f"blk.{layer}.ffn_gate_inp" for layer in range(3)]


def a_model() -> Decoder:
    """With routers that tell tokens apart, and inputs that have a mean, as those of real ones."""
    model = Decoder(SHAPE, seed=3)
    with torch.no_grad():
        model.token_embd.add_(0.02)
        for name in ROUTERS:
            model.get_parameter(name).mul_(20)
            model.get_parameter(name).sub_(model.get_parameter(name).mean(dim=1, keepdim=True))
    return model


def starved(model: Decoder, layer: int, expert: int) -> Decoder:
    """`model` with that expert's score lowered for every token."""
    with torch.no_grad():
        mean = routing_of(model).inputs[layer].mean(dim=0)
        model.get_parameter(ROUTERS[layer])[expert] -= 4 * mean / mean.dot(mean)
    return model


@torch.no_grad()
def routing_of(model: Decoder) -> Routing:
    """What the routers do on the tokens of all windows, a list entry a layer."""
    passes = [Routing([], [], []) for _ in WINDOWS]
    for tokens, routing in zip(WINDOWS, passes, strict=True):
        model(tokens, routing)
    fields = [(p.inputs, p.probabilities, p.chosen) for p in passes]
    return Routing(
        *([torch.cat(of) for of in zip(*each, strict=True)] for each in zip(*fields, strict=True))
    )


def loads(model: Decoder) -> list[npt.NDArray[np.float64]]:
    return [expert_load(chosen.numpy(), 8) for chosen in routing_of(model).chosen]


def weights(model: Decoder) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def changed_rows(before: dict[str, Tensor], model: Decoder) -> dict[str, list[int]]:
    """The rows that differ now, by the name of their parameter."""
    return {
        name: [i for i, row in enumerate(value) if not torch.equal(row, before[name][i])]
        for name, value in model.state_dict().items()
        if not torch.equal(value, before[name])
    }


def test_a_starved_expert_is_raised_to_its_share_and_no_other_row_changes() -> None:
    model = starved(a_model(), layer=1, expert=5)
    before, load_before = weights(model), loads(model)
    assert load_before[1][5] < LEAST
    (raised,) = settle_routers(model, WINDOWS, LEAST)
    assert (raised.layer, raised.expert) == (1, 5)
    assert changed_rows(before, model) == {ROUTERS[1]: [5]}
    assert raised.load_before == load_before[1][5]
    assert raised.load_after == loads(model)[1][5] >= LEAST
    assert raised.load_after < 2 * LEAST  # no further than it must


def test_the_raise_is_what_the_mean_score_grows_by() -> None:
    model = starved(a_model(), layer=2, expert=0)
    row = model.get_parameter(ROUTERS[2])[0].detach().clone()
    (raised,) = settle_routers(model, WINDOWS, LEAST)
    change = model.get_parameter(ROUTERS[2])[0].detach() - row
    growth = routing_of(model).inputs[2] @ change
    assert raised.raised_by > 0
    assert float(growth.mean()) == pytest.approx(raised.raised_by, rel=1e-4)


def test_later_layers_are_settled_on_what_the_changed_ones_give_them() -> None:
    model = starved(starved(a_model(), layer=0, expert=3), layer=2, expert=6)
    starved(model, layer=2, expert=1)
    raised = settle_routers(model, WINDOWS, LEAST)
    assert [(each.layer, each.expert) for each in raised] == [(0, 3), (2, 1), (2, 6)]
    for each in raised:
        assert each.load_after == loads(model)[each.layer][each.expert]
    assert min(load.min() for load in loads(model)) >= LEAST


def test_where_nothing_starves_nothing_changes() -> None:
    model = a_model()
    before = weights(model)
    assert settle_routers(model, WINDOWS, LEAST) == []
    assert changed_rows(before, model) == {}
    starved(model, layer=0, expert=2)
    assert settle_routers(model, WINDOWS, LEAST)
    settled = weights(model)
    assert settle_routers(model, WINDOWS, LEAST) == []  # once is enough
    assert changed_rows(settled, model) == {}


def test_equal_models_are_settled_equally() -> None:
    first, second = (starved(a_model(), layer=1, expert=4) for _ in range(2))
    assert settle_routers(first, WINDOWS, LEAST) == settle_routers(second, WINDOWS, LEAST)
    assert changed_rows(weights(first), second) == {}


def test_a_dense_model_has_nothing_to_settle() -> None:
    assert settle_routers(Decoder(DecoderShape(num_experts=0)), WINDOWS, LEAST) == []


def test_a_share_out_of_reach_is_told() -> None:
    with pytest.raises(HaversackError, match=r"fair share, below 1\.1, with its score raised"):
        settle_routers(a_model(), WINDOWS, 1.1)
