"""The decoder against plain loops, and its parts against torch's own."""

import pytest
import torch
from torch.nn import functional

from haversack.edge.learning.layers import causal_attention, rms_norm
from haversack.tools.training.decoder import (
    GROUP_MULTIPLE,
    Block,
    Decoder,
    DecoderShape,
    Routing,
    group_places,
)

SMALL = DecoderShape(vocab_size=64, hidden_size=32, num_hidden_layers=2, head_dim=8, num_experts=8)
TOKENS = torch.arange(2 * 24).view(2, 24) % 64


def louder(model: Decoder) -> Decoder:
    """With weights large enough that routers differ much from token to token."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(8 if parameter.ndim > 1 else 1)
    return model


def test_experts_equal_a_loop_over_tokens() -> None:
    model = louder(Decoder(SMALL, seed=3))
    block = model.blk[0]
    assert isinstance(block, Block)
    rows = torch.randn(20, SMALL.hidden_size)
    mixed, _ = block._experts(rows, None)
    scores = (rows @ block.ffn_gate_inp.T).softmax(dim=-1)
    for row, score, found in zip(rows, scores, mixed, strict=True):
        weights, chosen = score.topk(SMALL.num_experts_per_tok)
        expected = torch.zeros_like(row)
        for weight, e in zip(weights / weights.sum(), chosen, strict=True):
            gated = functional.silu(block.ffn_gate_exps[e] @ row) * (block.ffn_up_exps[e] @ row)
            expected += weight * (block.ffn_down_exps[e] @ gated)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_gradients_reach_every_parameter() -> None:
    for shape in (SMALL, DecoderShape(vocab_size=64, hidden_size=32, num_experts=0)):
        model = louder(Decoder(shape))
        logits = model(TOKENS)
        loss = functional.cross_entropy(logits.flatten(0, 1), TOKENS.flatten())
        (loss + 0.01 * model.balance_loss).backward()
        for name, parameter in model.named_parameters():
            assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name


def test_gradients_of_the_experts_are_those_of_a_finite_difference() -> None:
    model = louder(Decoder(SMALL, seed=5))
    down = model.get_parameter("blk.1.ffn_down_exps")

    def loss() -> torch.Tensor:
        return functional.cross_entropy(model(TOKENS).flatten(0, 1), TOKENS.flatten())

    loss().backward()
    assert down.grad is not None
    expert, row, column = (int(i) for i in (down.grad.abs() == down.grad.abs().max()).nonzero()[0])
    step = 1e-2
    with torch.no_grad():
        down[expert, row, column] += step
        above = loss()
        down[expert, row, column] -= 2 * step
        difference = (above - loss()) / (2 * step)
    torch.testing.assert_close(difference, down.grad[expert, row, column], rtol=0.02, atol=1e-5)


def test_tokens_see_only_what_came_before() -> None:
    model = louder(Decoder(SMALL))
    changed = TOKENS.clone()
    changed[:, 12:] = (changed[:, 12:] + 7) % 64
    before, after = model(TOKENS), model(changed)
    torch.testing.assert_close(before[:, :12], after[:, :12], rtol=1e-4, atol=1e-5)
    assert not torch.allclose(before[:, 12:], after[:, 12:], atol=1e-3)


def test_attention_equals_torchs_own() -> None:
    q, k, v = torch.randn(3, 2, 4, 24, 8)
    own = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
    torch.testing.assert_close(causal_attention(q, k, v), own, rtol=1e-5, atol=1e-6)


def test_rows_of_a_group_lie_together_and_groups_are_padded() -> None:
    experts = torch.tensor([2, 0, 2, 3, 0, 2])
    place, ends = group_places(experts, torch.bincount(experts, minlength=4))
    assert ends.tolist() == [64, 64, 128, 192] and GROUP_MULTIPLE == 64
    assert place.tolist() == [64, 0, 65, 128, 1, 66]


def test_the_balance_loss_weighs_loads_by_probabilities() -> None:
    model, routing = louder(Decoder(SMALL)), Routing([], [], [])
    model(TOKENS, routing)
    expected = [
        8 * (torch.bincount(chosen.flatten(), minlength=8) / chosen.numel() * p.mean(dim=0)).sum()
        for chosen, p in zip(routing.chosen, routing.probabilities, strict=True)
    ]
    assert balance_of(model) == pytest.approx(float(torch.stack(expected).mean().detach()))
    assert balance_of(model) > 1.01
    with torch.no_grad():
        for router in routers(model):
            router.zero_()
    model(TOKENS)
    assert balance_of(model) == pytest.approx(1.0)


def routers(model: Decoder) -> list[torch.nn.Parameter]:
    return [p for name, p in model.named_parameters() if "ffn_gate_inp" in name]


def balance_of(model: Decoder) -> float:
    return float(torch.as_tensor(model.balance_loss).detach())


def test_routing_is_told_on_request() -> None:
    routing = Routing([], [], [])
    model = Decoder(SMALL)
    model(TOKENS, routing)
    assert [chosen.shape for chosen in routing.chosen] == [(48, 4)] * 2
    assert [inputs.shape for inputs in routing.inputs] == [(48, 32)] * 2
    for probabilities, chosen in zip(routing.probabilities, routing.chosen, strict=True):
        torch.testing.assert_close(probabilities.sum(dim=1), torch.ones(48))
        assert torch.equal(probabilities.topk(4).indices, chosen)


def test_a_norm_has_mean_square_one() -> None:
    x = 5 * torch.randn(3, 64)
    normed = rms_norm(x, torch.ones(64), 1e-6)
    torch.testing.assert_close(normed.square().mean(dim=-1), torch.ones(3))


def num_parameters(model: Decoder) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def num_active_parameters(model: Decoder) -> int:
    """Parameters that one token is multiplied with."""
    experts = sum(p.numel() for n, p in model.named_parameters() if n.endswith("_exps"))
    used = model.shape.num_experts_per_tok / max(1, model.shape.num_experts)
    return num_parameters(model) - experts + int(used * experts) - model.token_embd.numel()


def test_the_shape_is_that_of_the_big_ones() -> None:
    model = Decoder(DecoderShape())
    experts = sum(p.numel() for n, p in model.named_parameters() if n.endswith("_exps"))
    assert model.shape.num_hidden_layers >= 8 and model.shape.num_experts >= 32
    assert experts > 0.9 * num_parameters(model)
    assert 40e6 < num_parameters(model) < 90e6
    assert 8e6 < num_active_parameters(model) < 15e6
    twin = Decoder(DecoderShape(num_experts=0))
    routed = sum(router.numel() for router in routers(model))
    assert num_active_parameters(twin) == num_active_parameters(model) - routed


def test_sizes_that_do_not_go_together_are_refused() -> None:
    with pytest.raises(ValueError, match="multiple of num_key_value_heads"):
        DecoderShape(num_attention_heads=4, num_key_value_heads=3)
    with pytest.raises(ValueError, match="below num_experts_per_tok"):
        DecoderShape(num_experts=2, num_experts_per_tok=4)
