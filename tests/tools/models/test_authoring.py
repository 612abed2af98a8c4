"""Writing files with llama.cpp: quantised rows, random models, and what llama.cpp refuses."""

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from haversack.devices.errors import ModelFileError, StorageError
from haversack.devices.ggml import GgufHeader
from haversack.tools.models.authoring import block_geometry, quantize_rows, random_model, row_bytes

METADATA: dict[str, str | int | float | list[int]] = {
    "general.architecture": "olmoe",
    "tokenizer.ggml.model": "no_vocab",
    "olmoe.vocab_size": 16,
    "olmoe.context_length": 32,
    "olmoe.block_count": 1,
    "olmoe.embedding_length": 32,
    "olmoe.feed_forward_length": 16,
    "olmoe.expert_count": 4,
    "olmoe.expert_used_count": 2,
    "olmoe.attention.head_count": 2,
    "olmoe.attention.head_count_kv": [2],
    "olmoe.attention.layer_norm_rms_epsilon": 1e-5,
}


def zeros(name: str, shape: tuple[int, ...]) -> npt.NDArray[np.float32]:
    return np.zeros(shape, np.float32)


def too_short(name: str, shape: tuple[int, ...]) -> npt.NDArray[np.float32]:
    return np.zeros(7, np.float32)


def test_sizes_of_rows() -> None:
    assert block_geometry("Q4_K") == (256, 144)
    assert row_bytes("F32", 3) == 12
    assert row_bytes("MXFP4", 96) == 3 * 17


def test_rows_are_quantised_one_by_one() -> None:
    data = np.random.default_rng(0).standard_normal((3, 5, 64), np.float32)
    np.testing.assert_array_equal(
        quantize_rows(data, "F16").view(np.float16), data.astype(np.float16)
    )
    blocks = quantize_rows(data, "Q8_0").reshape(3, 5, 2, 34)
    scales = blocks[..., :2].copy().view(np.float16).astype(np.float32)
    values = (blocks[..., 2:].view(np.int8) * scales).reshape(data.shape)
    assert np.abs(values - data).max() < np.abs(data).max() / 200


def test_a_type_that_requires_importance_is_quantised() -> None:
    data = np.random.default_rng(0).standard_normal((1, 256), np.float32)
    assert quantize_rows(data, "IQ2_XXS").shape == (1, 66)


def test_rows_that_no_block_fits_are_refused() -> None:
    with pytest.raises(
        ModelFileError, match="40 elements are no whole number of Q8_0 blocks of 32"
    ):
        quantize_rows(np.zeros((2, 40), np.float32), "Q8_0")
    for unknown in ("Q8_1", "I32", "q4_0", ""):
        with pytest.raises(ModelFileError, match=f'"{unknown}" is no block type of weights'):
            quantize_rows(np.zeros((2, 64), np.float32), unknown)


def test_each_tensor_is_asked_for_and_written(tmp_path: Path) -> None:
    asked: dict[str, tuple[int, ...]] = {}

    def fill(name: str, shape: tuple[int, ...]) -> npt.NDArray[np.float32]:
        asked[name] = shape
        return np.full(shape, len(asked), np.float32)

    path = tmp_path / "model.gguf"
    random_model(METADATA, fill, path)
    assert asked["blk.0.ffn_up_exps.weight"] == (4, 16, 32)
    assert asked["output_norm.weight"] == (32,)
    number = list(asked).index("blk.0.ffn_up_exps.weight") + 1
    with GgufHeader(path) as header:
        assert header.value("olmoe.expert_count") == 4
        tensor = next(t for t in header.tensors if t.name == "blk.0.ffn_up_exps.weight")
    data = np.fromfile(path, np.float32, tensor.num_bytes // 4, offset=tensor.offset)
    assert data.shape == (4 * 16 * 32,)
    assert (data == number).all()


def test_what_fill_raises_comes_out(tmp_path: Path) -> None:
    calls: list[str] = []

    def fail(name: str, shape: tuple[int, ...]) -> npt.NDArray[np.float32]:
        calls.append(name)
        raise KeyError(name)

    with pytest.raises(KeyError):
        random_model(METADATA, fail, tmp_path / "model.gguf")
    assert len(calls) == 1
    with pytest.raises(ValueError, match="has shape"):
        random_model(METADATA, too_short, tmp_path / "model.gguf")
    assert not list(tmp_path.iterdir())


def test_refused_metadata_and_missing_folders(tmp_path: Path) -> None:
    without_layers = {k: v for k, v in METADATA.items() if k != "olmoe.block_count"}
    with pytest.raises(ModelFileError, match="block_count"):
        random_model(without_layers, zeros, tmp_path / "model.gguf")
    with pytest.raises(StorageError, match="does not exist"):
        random_model(METADATA, zeros, tmp_path / "no" / "model.gguf")
