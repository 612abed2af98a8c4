"""Muon: orthogonal directions, each matrix of a stack on its own, one learning rate for all."""

import pytest
import torch

from haversack.tools.training import muon
from haversack.tools.training.muon import Muon, orthogonalized, product_type


@pytest.mark.parametrize("shape", [(64, 64), (32, 96), (96, 32), (5, 32, 48)])
def test_singular_values_come_near_one(shape: tuple[int, ...]) -> None:
    torch.manual_seed(1)
    values = torch.linalg.svdvals(orthogonalized(torch.randn(shape)).float())
    assert values.max() < 1.3
    assert values.median() > 0.6


def test_a_stack_is_so_many_matrices() -> None:
    torch.manual_seed(2)
    stack = torch.randn(3, 16, 24) * torch.tensor([1.0, 100.0, 0.01])[:, None, None]
    alone = torch.stack([orthogonalized(matrix) for matrix in stack])
    torch.testing.assert_close(orthogonalized(stack), alone, rtol=0.05, atol=0.02)


def test_a_step_has_the_size_of_one_of_adamw() -> None:
    torch.manual_seed(3)
    for shape in ((64, 64), (256, 32)):
        weights = torch.nn.Parameter(torch.zeros(shape))
        weights.grad = torch.randn(shape) * 1e-3
        Muon([weights], lr=0.01).step()
        rms = float(weights.detach().square().mean().sqrt())
        assert rms == pytest.approx(0.2 * 0.01, rel=0.3)


def test_it_finds_a_matrix() -> None:
    torch.manual_seed(4)
    wanted, inputs = torch.randn(16, 16), torch.randn(256, 16)
    weights = torch.nn.Parameter(torch.zeros(16, 16))
    optimizer = Muon([weights], lr=0.3, weight_decay=0.0)
    loss = torch.tensor(torch.inf)
    for step in range(200):
        optimizer.param_groups[0]["lr"] = 0.3 * (1 - step / 200)
        loss = (inputs @ (weights - wanted)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert float(loss.detach()) < 0.05


def test_parameters_without_a_gradient_stay() -> None:
    weights = torch.nn.Parameter(torch.ones(4, 4))
    Muon([weights], lr=0.1).step()
    assert torch.equal(weights, torch.ones(4, 4))


@pytest.mark.parametrize(("bfloat_s", "found"), [(1.0, torch.bfloat16), (3.0, torch.float32)])
def test_the_faster_one_is_taken(
    monkeypatch: pytest.MonkeyPatch, bfloat_s: float, found: torch.dtype
) -> None:
    seconds = {torch.bfloat16: bfloat_s, torch.float32: 2.0}
    monkeypatch.setattr(muon, "_product_s", seconds.__getitem__)
    product_type.cache_clear()
    assert product_type("cpu") is found
    product_type.cache_clear()


def test_this_machine_keeps_its_type() -> None:
    assert product_type("cpu") is product_type("cpu")
    assert product_type("cuda") is torch.bfloat16
