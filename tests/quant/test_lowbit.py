"""Low copies from a second, smaller GGUF of the same model, and what is refused as another one."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from haversack.devices.conversion import to_floats
from haversack.devices.errors import ModelFileError
from haversack.edge.loading import builtin_model
from haversack.quant.gguf import ExpertCopy, ModelGeometry, read_geometry
from haversack.quant.lowbit import LowCopies, low_from_gguf
from haversack.tools.models.synth import TinyLayout, TinyShape

SMALL = TinyShape(num_hidden_layers=2, num_experts=4, vocab_size=64)
TinyModel = Callable[..., Path]


def copy_bytes(geometry: ModelGeometry, low: LowCopies, copy: ExpertCopy, expert: int) -> bytes:
    """Return the bytes of an expert's copy, read where it is said to lie."""
    with [*geometry.paths, *low.paths][copy.part].open("rb") as file:
        file.seek(copy.place(expert))
        return file.read(copy.num_bytes)


@pytest.mark.parametrize("splits", [1, 2])
def test_a_smaller_gguf_gives_its_experts(tiny_model: TinyModel, splits: int) -> None:
    high = read_geometry(tiny_model(shape=SMALL, expert_type="Q8_0"))
    layout = TinyLayout(num_splits=splits)
    low_path = tiny_model(shape=SMALL, expert_type="Q2_K", layout=layout)
    low = low_from_gguf(high, low_path)
    theirs = read_geometry(low_path)
    assert low.paths == theirs.paths
    assert str(low_path) in low.source
    assert low.digests is None
    assert low.expert_bytes(0) == theirs.layers[0].expert_bytes < high.layers[0].expert_bytes / 3
    for layer_idx, copies in enumerate(low.copies):
        for copy, matrix in zip(copies, high.layers[layer_idx].matrices, strict=True):
            assert copy.level == 1
            for expert in range(matrix.num_experts):
                assert low.has(layer_idx, expert)
                rounded = values(copy_bytes(high, low, copy, expert), copy.type_id)
                exact = values(copy_bytes(high, low, matrix.copies[0], expert), matrix.type_id)
                assert 0 < np.linalg.norm(rounded - exact) < 0.4 * np.linalg.norm(exact)


def values(data: bytes, type_id: int) -> np.ndarray:
    return to_floats(np.frombuffer(data, np.uint8), type_id)


def test_a_matrix_that_is_not_smaller_there_is_the_models_own(tiny_model: TinyModel) -> None:
    high = read_geometry(tiny_model(shape=SMALL, expert_type="Q4_K"))
    mixed = TinyLayout(down_type="Q6_K")
    low = low_from_gguf(high, tiny_model(shape=SMALL, expert_type="Q2_K", layout=mixed))
    *others, down = low.copies[0]
    own = high.layers[0].matrices[-1].copies[0]
    assert (down.level, down.part, down.offset) == (1, own.part, own.offset)
    assert [copy.part for copy in others] == [1, 1]


@pytest.mark.parametrize(
    ("other", "why"),
    [
        ({"architecture": "olmoe"}, "architecture olmoe"),
        ({"shape": TinyShape(2, num_experts=8, vocab_size=64)}, "has the shape"),
        ({"shape": TinyShape(3, num_experts=4, vocab_size=64)}, "3 layers"),
        ({"shape": TinyShape(2, 4, num_experts_per_tok=1, vocab_size=64)}, "1 experts a token"),
        ({"expert_type": "Q8_0"}, "its experts take"),
        ({"expert_type": "F16"}, "its experts take"),
        ({"layout": TinyLayout(fused=True), "architecture": "qwen35moe"}, "architecture"),
    ],
)
def test_what_cannot_be_the_same_model_is_refused(
    tiny_model: TinyModel, other: dict[str, object], why: str
) -> None:
    high = read_geometry(tiny_model(shape=SMALL, expert_type="Q8_0"))
    low_path = tiny_model(**{"shape": SMALL, "expert_type": "Q2_K", **other})
    with pytest.raises(ModelFileError, match=f"no low copies of .*{why}.*--low-from"):
        low_from_gguf(high, low_path)


def test_another_model_of_the_same_shape_is_refused(tiny_model: TinyModel) -> None:
    high = read_geometry(tiny_model(shape=SMALL, expert_type="Q8_0"))
    with pytest.raises(ModelFileError, match=r"a fine-tune: .* differs by"):
        low_from_gguf(high, tiny_model(shape=SMALL, expert_type="Q2_K", seed=1))


def test_other_experts_under_the_same_norms_and_routers_are_refused(
    tiny_model: TinyModel, tmp_path: Path
) -> None:
    high = read_geometry(tiny_model(shape=SMALL, expert_type="Q8_0"))
    low_path = tiny_model(shape=SMALL, expert_type="Q2_K")
    changed = tmp_path / "changed.gguf"
    changed.write_bytes(low_path.read_bytes())
    matrix = read_geometry(low_path).layers[0].matrices[0]
    with changed.open("r+b") as file:
        data = np.fromfile(low_path, np.uint8, matrix.expert_bytes, offset=matrix.offset)
        file.seek(matrix.offset)
        file.write(data.reshape(-1, 84)[::-1].tobytes())  # the rows' blocks in another order
    with pytest.raises(ModelFileError, match=r"expert 0 of blk.0.*differs by"):
        low_from_gguf(high, changed)


def test_a_model_without_experts_has_no_low_copies(tiny_model: TinyModel) -> None:
    twin = Path(__file__).parents[1] / "data/models/tales-twin.gguf"
    with pytest.raises(ModelFileError, match="architecture qwen3,"):
        low_from_gguf(read_geometry(builtin_model()), twin)
