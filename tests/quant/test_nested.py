"""Nested copies restore every block bit for bit, and their bases are near the originals."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from haversack.devices.conversion import to_blocks, to_floats
from haversack.devices.errors import ModelFileError
from haversack.edge.loading import builtin_model
from haversack.quant.blocks import BLOCK_TYPES, block_type
from haversack.quant.experts import Blocks, expert_blocks
from haversack.quant.gguf import read_geometry
from haversack.quant.nested import Splitter, join_blocks, nested_type, split_blocks
from haversack.tools.models.authoring import quantize_rows
from haversack.tools.models.synth import TinyLayout, TinyShape

SMALL = TinyShape(num_hidden_layers=2, num_experts=4, vocab_size=64)
NARROW = TinyShape(2, num_experts=4, hidden_size=256, moe_intermediate_size=96, vocab_size=64)
TYPES = ("Q4_K", "Q5_K", "Q6_K", "Q8_0")
TinyModel = Callable[..., Path]


def check_restored(blocks: Blocks, type_id: int) -> Blocks:
    """Check that blocks (B, bytes of a block) come back; return their bases."""
    kind = nested_type(type_id)
    assert kind is not None
    base, rest = split_blocks(blocks, type_id)
    assert base.shape == (len(blocks), block_type(kind.base_id).block_bytes)
    assert rest.shape == (len(blocks), kind.rest_bytes)
    np.testing.assert_array_equal(join_blocks(base, rest, type_id), blocks)
    return base


@pytest.mark.filterwarnings("ignore:.*encountered in:RuntimeWarning")
@pytest.mark.parametrize("name", TYPES)
def test_blocks_of_any_bytes_are_restored(name: str) -> None:
    """Scales that are infinite or no numbers, and negative ones, are among them."""
    type_id = BLOCK_TYPES[name]
    shape = (3001, block_type(type_id).block_bytes)
    blocks = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    check_restored(blocks, type_id)
    for byte in (0x00, 0x55, 0xAA, 0xFF):
        check_restored(np.full((2, shape[1]), byte, np.uint8), type_id)


@pytest.mark.parametrize("name", TYPES)
def test_each_bit_has_its_place(name: str) -> None:
    type_id = BLOCK_TYPES[name]
    num_bytes = block_type(type_id).block_bytes
    blocks = np.packbits(np.eye(8 * num_bytes, dtype=np.uint8), axis=1)
    check_restored(blocks, type_id)
    check_restored(~blocks, type_id)


@pytest.mark.parametrize(("name", "most_error"), [("Q8_0", 0.1), *((k, 0.33) for k in TYPES[:3])])
def test_bases_are_near_the_originals(name: str, most_error: float) -> None:
    """The base of Q8_0 is as near as Q4_1 is; those of the others are as near as Q2_K is."""
    type_id = BLOCK_TYPES[name]
    kind = nested_type(type_id)
    assert kind is not None
    rng = np.random.default_rng(1)
    rows = rng.standard_normal((64, 512), np.float32) * rng.choice([0.01, 1, 3], (64, 1))
    blocks = quantize_rows(rows, name).reshape(-1, block_type(type_id).block_bytes)
    exact = to_floats(blocks, type_id)
    base = to_floats(check_restored(blocks, type_id), kind.base_id)
    rounded = to_floats(to_blocks(exact.reshape(64, -1), kind.base_id, None), kind.base_id)
    error = np.linalg.norm(base - exact) / np.linalg.norm(exact)
    assert 0 < error < most_error
    assert error < 1.25 * np.linalg.norm(rounded.reshape(exact.shape) - exact) / np.linalg.norm(
        exact
    )


def test_a_trained_models_experts_are_restored() -> None:
    geometry = read_geometry(builtin_model())
    splitter = Splitter(geometry)
    bases, rests = splitter.layout().matrices
    for layer_idx, expert in ((0, 0), (4, 17), (7, 31)):
        slices = splitter.slices(layer_idx, expert)
        for index, matrix in enumerate(geometry.layers[layer_idx].matrices):
            base, rest = slices[0][index], slices[1][index]
            assert (base.nbytes, rest.nbytes) == (
                bases[layer_idx][index].num_bytes,
                rests[layer_idx][index].num_bytes,
            )
            joined = join_blocks(base.reshape(-1, 20), rest.reshape(-1, 18), matrix.type_id)
            blocks = expert_blocks(geometry, matrix, expert)
            np.testing.assert_array_equal(joined.reshape(-1), blocks.reshape(-1))


def test_types_without_upper_bits_say_so(tiny_model: TinyModel) -> None:
    for name in ("Q4_0", "MXFP4", "IQ4_NL", "Q2_K", "F16"):
        assert nested_type(BLOCK_TYPES[name]) is None
    geometry = read_geometry(tiny_model(shape=SMALL, expert_type="MXFP4"))
    with pytest.raises(ModelFileError, match="are mxfp4, which has no nested form"):
        Splitter(geometry)


def test_matrices_without_a_nested_form_stay(tiny_model: TinyModel) -> None:
    layout = TinyLayout(down_type="Q5_0")
    splitter = Splitter(read_geometry(tiny_model(shape=NARROW, expert_type="Q4_K", layout=layout)))
    bases, rests = splitter.layout().matrices
    assert (bases[0][2].num_bytes, rests[0][2].num_bytes) == (0, 0)
    assert [len(matrices) for matrices in splitter.slices(1, 3)] == [2, 2]
    assert splitter.notes == ["2 matrices of q5_0 stay as they are: the type has no nested form"]
