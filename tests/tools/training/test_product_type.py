"""The type that products are fastest in, as found by trying."""

import pytest
import torch

from haversack.tools.training import product_type as module
from haversack.tools.training.product_type import product_type


@pytest.mark.parametrize(("bfloat_s", "found"), [(1.0, torch.bfloat16), (3.0, torch.float32)])
def test_the_faster_one_is_taken(
    monkeypatch: pytest.MonkeyPatch, bfloat_s: float, found: torch.dtype
) -> None:
    seconds = {torch.bfloat16: bfloat_s, torch.float32: 2.0}
    monkeypatch.setattr(module, "_product_s", seconds.__getitem__)
    product_type.cache_clear()
    assert product_type("cpu") is found
    product_type.cache_clear()


def test_this_machine_keeps_its_type() -> None:
    assert product_type("cpu") is product_type("cpu")
    assert product_type("cuda") is torch.bfloat16
