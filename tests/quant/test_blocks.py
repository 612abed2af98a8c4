"""Block types: their geometry equals that of the `gguf` package."""

import pytest
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

from haversack.quant.blocks import block_type, smallest_type, weight_types

Q8_0, Q4_K, MXFP4 = (GGMLQuantizationType[name].value for name in ("Q8_0", "Q4_K", "MXFP4"))
NOT_FOR_WEIGHTS = {"I8", "I16", "I32", "I64", "F64", "Q8_1", "Q8_K"}  # plain numbers, activations
NEWER_THAN_THE_PACKAGE = {"Q2_0"}


@pytest.mark.parametrize("known", GGML_QUANT_SIZES, ids=lambda known: known.name)
def test_every_type_of_the_format(known: GGMLQuantizationType) -> None:
    found = block_type(known.value)
    assert found.type_id == known.value
    assert found.name.upper() == known.name
    if known.name == "Q8_1":  # the package has an older layout of it; it never is in a file
        assert (found.block_elements, found.block_bytes) == (32, 36)
    else:
        assert (found.block_elements, found.block_bytes) == GGML_QUANT_SIZES[known]


def test_bytes_of_a_row() -> None:
    assert block_type(0).row_bytes(3) == 12  # F32
    assert block_type(Q8_0).row_bytes(64) == 2 * 34
    assert block_type(Q4_K).row_bytes(768) == 3 * 144
    assert block_type(MXFP4).row_bytes(2880) == 90 * 17


def test_blocks_must_divide_a_row() -> None:
    with pytest.raises(
        ValueError, match="row of 300 elements is no multiple of q4_K's block of 256"
    ):
        block_type(Q4_K).row_bytes(300)


@pytest.mark.parametrize("type_id", [-1, 4, 31, 43, 1000])  # never was, removed twice, unknown
def test_numbers_that_are_no_type(type_id: int) -> None:
    with pytest.raises(ValueError, match=f"block type {type_id} is not one of this llama.cpp's"):
        block_type(type_id)


def test_weights_come_in_all_other_types() -> None:
    names = {found.name.upper() for found in weight_types()}
    assert names - NEWER_THAN_THE_PACKAGE == {t.name for t in GGML_QUANT_SIZES} - NOT_FOR_WEIGHTS
    assert len(names) == len(weight_types())


def test_the_smallest_come_first() -> None:
    bits = [8 * found.block_bytes / found.block_elements for found in weight_types()]
    assert bits == sorted(bits)
    assert (bits[0], bits[-1]) == (1.125, 32)


@pytest.mark.parametrize("row_elements", [1, 3, 16, 32, 48, 64, 96, 128, 192, 256, 768, 2880])
def test_the_smallest_type_for_a_row(row_elements: int) -> None:
    found = smallest_type(row_elements)
    fitting = [t for t in weight_types() if row_elements % t.block_elements == 0]
    assert found in fitting
    assert found.row_bytes(row_elements) == min(t.row_bytes(row_elements) for t in fitting)


def test_a_row_that_no_block_divides_takes_plain_numbers() -> None:
    assert smallest_type(1).name == "f16"
    assert smallest_type(33).name == "f16"
