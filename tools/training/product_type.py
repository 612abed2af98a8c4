"""The number type that this machine multiplies matrices fastest in."""

import time
from functools import cache

import torch

_SIZE, _REPEATS = 512, 3


@cache
def product_type(device: str) -> torch.dtype:
    """bfloat16 where its products are at least as fast as those of float32, as on GPUs and on CPUs
    with instructions for it; elsewhere it is emulated, 14 times slower (measured on a Zen 3)."""
    if device != "cpu":
        return torch.bfloat16
    return min(torch.bfloat16, torch.float32, key=_product_s)


def _product_s(dtype: torch.dtype) -> float:
    """Seconds of a product of two matrices, the best of a few."""
    matrix = torch.ones(_SIZE, _SIZE, dtype=dtype)
    times = []
    for _ in range(_REPEATS):
        start = time.perf_counter()
        torch.matmul(matrix, matrix)
        times.append(time.perf_counter() - start)
    return min(times)
