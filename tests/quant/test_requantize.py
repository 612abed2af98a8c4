"""Which block types low copies get, and what their records hold."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from haversack.devices.conversion import to_floats
from haversack.devices.errors import ModelFileError
from haversack.quant.blocks import BLOCK_TYPES
from haversack.quant.experts import expert_rows
from haversack.quant.gguf import ModelGeometry, read_geometry
from haversack.quant.importance import Importance
from haversack.quant.requantize import Requantizer
from haversack.tools.models.synth import TinyLayout, TinyShape

SMALL = TinyShape(num_hidden_layers=2, num_experts=4, vocab_size=64)
NARROW = TinyShape(2, num_experts=4, hidden_size=256, moe_intermediate_size=96, vocab_size=64)
TinyModel = Callable[..., Path]


def even(geometry: ModelGeometry) -> Importance:
    means = {
        matrix.name: np.ones((matrix.num_experts, matrix.row_elements), np.float32)
        for layer in geometry.layers
        for matrix in layer.matrices
    }
    return Importance(means, "an even one")


@pytest.mark.parametrize(("low", "most_error"), [("q2_k", 0.4), ("Q3_K", 0.2), ("iq3_xxs", 0.25)])
def test_copies_are_near_the_originals(tiny_model: TinyModel, low: str, most_error: float) -> None:
    geometry = read_geometry(tiny_model(shape=SMALL, expert_type="Q8_0"))
    maker = Requantizer(geometry, low, None)
    (matrices,) = maker.layout().matrices
    assert maker.notes == []
    for layer_idx, layer in enumerate(geometry.layers):
        (made,) = maker.slices(layer_idx, 3)
        for matrix, stored, blocks in zip(layer.matrices, matrices[layer_idx], made, strict=True):
            assert stored == (BLOCK_TYPES[low.upper()], blocks.nbytes)
            exact = expert_rows(geometry, matrix, 3)
            error = to_floats(blocks, stored.type_id).reshape(exact.shape) - exact
            assert 0 < np.linalg.norm(error) < most_error * np.linalg.norm(exact)


def test_rows_of_no_whole_blocks_get_a_type_of_shorter_blocks(tiny_model: TinyModel) -> None:
    geometry = read_geometry(tiny_model(shape=NARROW, expert_type="Q8_0"))
    maker = Requantizer(geometry, "q2_k", None)
    types = [stored.type_id for stored in maker.layout().matrices[0][0]]
    assert types == [BLOCK_TYPES["Q2_K"], BLOCK_TYPES["Q2_K"], BLOCK_TYPES["IQ4_NL"]]
    assert maker.notes == ["2 matrices of q8_0 with rows of 96 elements become iq4_nl"]
    assert [blocks.nbytes for blocks in maker.slices(0, 0)[0]][-1] == 256 * 96 // 32 * 18


def test_where_no_type_is_smaller_the_matrix_stays(tiny_model: TinyModel) -> None:
    layout = TinyLayout(down_type="Q4_0")
    path = tiny_model(shape=NARROW, expert_type="Q4_K", layout=layout)
    maker = Requantizer(read_geometry(path), "q2_k", None)
    assert maker.layout().matrices[0][0][-1].num_bytes == 0
    assert len(maker.slices(0, 0)[0]) == 2
    assert maker.notes == [
        "2 matrices of q4_0 with rows of 96 elements stay as they are: nothing smaller fits"
    ]


@pytest.mark.parametrize(
    ("found", "chosen"),
    [("F16", "q4_K"), ("Q8_0", "q4_K"), ("Q6_K", "q3_K"), ("Q5_K", "q2_K"), ("Q4_K", "q2_K")],
)
def test_the_best_type_of_half_the_bytes_is_chosen(
    tiny_model: TinyModel, found: str, chosen: str
) -> None:
    geometry = read_geometry(tiny_model(shape=SMALL, expert_type=found))
    assert Requantizer(geometry, "auto", None).layout().source == chosen


@pytest.mark.parametrize(
    ("low", "why"),
    [
        ("q2", "--low is 'q2': give one of auto, nested, f32"),
        ("q4_k", "q4_K makes no expert of .* smaller, they are q4_K"),
        ("iq2_xxs", "iq2_xxs is only made with an importance matrix: give --imatrix"),
    ],
)
def test_what_cannot_be_made_is_refused(tiny_model: TinyModel, low: str, why: str) -> None:
    geometry = read_geometry(tiny_model(shape=SMALL, expert_type="Q4_K"))
    with pytest.raises(ModelFileError, match=why):
        Requantizer(geometry, low, None)


def test_an_importance_must_be_of_this_model(tiny_model: TinyModel) -> None:
    geometry = read_geometry(tiny_model(shape=SMALL, expert_type="Q4_K"))
    name = geometry.layers[0].matrices[0].name
    with pytest.raises(ModelFileError, match=r"it is another model's"):
        Requantizer(geometry, "q2_k", Importance({name: np.ones((2, 256), np.float32)}, "x"))
    with pytest.raises(ModelFileError, match=f"has no numbers for {name}"):
        Requantizer(geometry, "iq2_xxs", Importance({}, "x"))
    assert Requantizer(geometry, "iq2_xxs", even(geometry)).slices(0, 0)[0][0].nbytes == 256 * 66


def test_the_identity_names_type_and_importance(tiny_model: TinyModel) -> None:
    geometry = read_geometry(tiny_model(shape=SMALL, expert_type="Q8_0"))
    plain = Requantizer(geometry, "q2_k", None).layout()
    weighted = Requantizer(geometry, "q2_k", even(geometry)).layout()
    other = Requantizer(geometry, "q3_k", None).layout()
    assert len({plain.identity, weighted.identity, other.identity}) == 3
    assert weighted.source == "q2_K, weighted by an even one"
