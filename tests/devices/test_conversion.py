"""Rows become blocks and blocks become rows as ggml's own functions convert them."""

import numpy as np
import pytest
from gguf import GGMLQuantizationType, dequantize

from haversack.devices.conversion import requires_importance, to_blocks, to_floats
from haversack.quant.blocks import BLOCK_TYPES

ROWS = np.random.default_rng(0).standard_normal((3, 2, 512), np.float32)


@pytest.mark.parametrize("name", ["F32", "F16", "BF16", "Q4_0", "Q8_0", "Q2_K", "Q4_K", "Q6_K"])
def test_values_are_those_that_the_gguf_package_reads(name: str) -> None:
    type_id = BLOCK_TYPES[name]
    blocks = to_blocks(ROWS, type_id, None)
    values = to_floats(blocks, type_id)
    assert values.shape == ROWS.shape
    expected = dequantize(blocks, GGMLQuantizationType(type_id))
    np.testing.assert_allclose(values, expected, rtol=1e-5, atol=1e-6)
    assert np.abs(values - ROWS).mean() < 0.3


def test_columns_that_count_more_are_nearer() -> None:
    importance = np.ones(512, np.float32)
    importance[::2] = 1000
    type_id = BLOCK_TYPES["Q2_K"]
    errors = np.abs(to_floats(to_blocks(ROWS, type_id, importance), type_id) - ROWS)
    assert errors[..., ::2].mean() < 0.9 * errors[..., 1::2].mean()


def test_some_types_require_an_importance() -> None:
    assert requires_importance(BLOCK_TYPES["IQ2_XXS"])
    assert not requires_importance(BLOCK_TYPES["Q2_K"])
    with pytest.raises(AssertionError, match="requires"):
        to_blocks(ROWS, BLOCK_TYPES["IQ2_XXS"], None)


def test_rows_of_broken_blocks_are_refused() -> None:
    with pytest.raises(AssertionError, match="whole blocks"):
        to_blocks(ROWS[..., :100], BLOCK_TYPES["Q4_K"], None)
    with pytest.raises(AssertionError, match="whole blocks"):
        to_floats(np.zeros(100, np.uint8), BLOCK_TYPES["Q4_K"])
