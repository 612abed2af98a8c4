"""Muon, an optimizer whose momentum matrices are made orthogonal, and the number type it computes
in.

After Jordan et al. 2024 ("Muon: an optimizer for hidden layers in neural networks"), scaled as in
Liu et al. 2025 ("Muon is Scalable for LLM Training", section 2.2) so that Muon and AdamW use the
same learning rate.
"""

import time
from collections.abc import Iterable
from functools import cache

import torch
from torch import Tensor, nn

_COEFFICIENTS = 3.4445, -4.7750, 2.0315  # of the quintic that drives singular values towards 1
_NUM_ITERATIONS = 5
_ADAM_RMS = 0.2  # of a typical update of AdamW, per unit of learning rate
_TRIED_SIZE, _TRIED_TIMES = 512, 3  # products that are timed


class Muon(torch.optim.Optimizer):
    """Muon for matrices (M, N) and stacks of them (E, M, N), each matrix of a stack on its own."""

    def __init__(
        self,
        parameters: Iterable[nn.Parameter],
        lr: float,
        momentum: float = 0.95,
        weight_decay: float = 0.1,
    ) -> None:
        super().__init__(parameters, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Change every parameter that has a gradient."""
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._step_one(parameter, group)

    def _step_one(self, parameter: nn.Parameter, group: dict[str, float]) -> None:
        gradient, state = parameter.grad, self.state[parameter]
        assert gradient is not None
        if "velocity" not in state:
            state["velocity"] = torch.zeros_like(gradient)
        velocity: Tensor = state["velocity"]
        velocity.lerp_(gradient, 1 - group["momentum"])
        direction = orthogonalized(gradient.lerp(velocity, group["momentum"]))
        scale = _ADAM_RMS * max(parameter.shape[-2:]) ** 0.5
        parameter.mul_(1 - group["lr"] * group["weight_decay"])
        parameter.add_(direction.to(parameter.dtype), alpha=-group["lr"] * scale)


def orthogonalized(matrices: Tensor) -> Tensor:
    """Return the (nearly) orthogonal factor of each matrix of (..., M, N), in the fastest type."""
    a, b, c = _COEFFICIENTS
    tall = matrices.shape[-2] > matrices.shape[-1]
    x = matrices.to(product_type(matrices.device.type))
    x = x.mT if tall else x
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(_NUM_ITERATIONS):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    result: Tensor = x.mT if tall else x
    return result


@cache
def product_type(device: str) -> torch.dtype:
    """Return the type that this machine multiplies matrices fastest in: bfloat16 or float32. GPUs
    and CPUs with instructions for bfloat16 take that; elsewhere it is emulated, 14 times slower
    (measured on a Zen 3)."""
    if device != "cpu":
        return torch.bfloat16
    return min(torch.bfloat16, torch.float32, key=_product_s)


def _product_s(dtype: torch.dtype) -> float:
    """Return the seconds of a product of two matrices, the best of a few."""
    matrix = torch.ones(_TRIED_SIZE, _TRIED_SIZE, dtype=dtype)
    times = []
    for _ in range(_TRIED_TIMES):
        start = time.perf_counter()
        torch.matmul(matrix, matrix)
        times.append(time.perf_counter() - start)
    return min(times)
