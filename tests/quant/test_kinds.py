"""Files that are no causal text models are refused by their keys, and all others are not."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGUFWriter

from haversack.devices.errors import ModelFileError
from haversack.quant.gguf import read_geometry
from haversack.tools.models.architectures import ARCHITECTURES
from haversack.tools.models.synth import TinyShape, write_tiny

SMALL = TinyShape(num_hidden_layers=2, num_experts=4, vocab_size=64)
KIND_OF_ARCHITECTURE = {
    **dict.fromkeys(("bert", "modern-bert", "nomic-bert", "nomic-bert-moe"), "embedding"),
    **dict.fromkeys(("neo-bert", "jina-bert-v2", "jina-bert-v3", "eurobert"), "embedding"),
    **dict.fromkeys(("gemma-embedding", "llama-embed"), "embedding"),
    **dict.fromkeys(("dream", "llada", "llada-moe", "rnd1"), "diffusion"),
    **dict.fromkeys(("qwen3tts", "pockettts", "wavtokenizer-dec"), "speech"),
    **dict.fromkeys(("eagle3", "dflash", "gemma4-assistant"), "drafts tokens for another model"),
    "t5": "encoder-decoder",
    "t5encoder": "encoder without a decoder",
    "clip": "mmproj",
    "controlvector": "control vector",
}


def gguf_with(path: Path, architecture: str, *, has_weights: bool = True, **keys: Any) -> Path:
    """Write a file of a few keys, whose names have "__" for a dot, and one tensor."""
    writer = GGUFWriter(path, architecture)
    for name, value in keys.items():
        key = name.replace("__", ".")
        if isinstance(value, bool):
            writer.add_bool(key, value)
        elif isinstance(value, int):
            writer.add_uint32(key, value)
        else:
            writer.add_string(key, value)
    if has_weights:
        writer.add_tensor("token_embd.weight", np.ones((4, 32), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def refusal(path: Path) -> str:
    with pytest.raises(ModelFileError) as refused:
        read_geometry(path)
    message = str(refused.value)
    assert message.startswith(f"{path} is ") and "\n" not in message
    assert "haversack runs causal text models" in message
    assert "damaged" not in message
    return message


@pytest.mark.parametrize(("architecture", "kind"), KIND_OF_ARCHITECTURE.items())
def test_architectures_of_other_kinds(architecture: str, kind: str, tmp_path: Path) -> None:
    assert kind in refusal(gguf_with(tmp_path / "model.gguf", architecture))


def test_an_adapter(tmp_path: Path) -> None:
    path = gguf_with(tmp_path / "lora.gguf", "qwen3moe", general__type="adapter")
    assert "an adapter (LoRA) that changes another model" in refusal(path)
    path = gguf_with(tmp_path / "old-lora.gguf", "llama", adapter__type="lora")
    assert "an adapter (LoRA)" in refusal(path)


def test_a_projector_and_an_importance_matrix(tmp_path: Path) -> None:
    path = gguf_with(tmp_path / "mmproj.gguf", "newer-clip", general__type="mmproj")
    assert "a projector (mmproj)" in refusal(path)
    path = gguf_with(tmp_path / "imatrix.gguf", "", general__type="imatrix")
    assert "an importance matrix" in refusal(path)


def test_a_vocabulary_alone(tmp_path: Path) -> None:
    path = gguf_with(tmp_path / "vocab.gguf", "llama", has_weights=False)
    assert "a vocabulary without weights" in refusal(path)


@pytest.mark.parametrize(
    "keys",
    [
        {"new__attention__causal": False},
        {"new__attention__causal": 0},
        {"new__pooling_type": 1},
        {"new__pooling_type": 3},
        {"diffusion__shift_logits": True},
    ],
    ids=str,
)
def test_architectures_that_nobody_knows_yet(keys: dict[str, Any], tmp_path: Path) -> None:
    assert "(new" in refusal(gguf_with(tmp_path / "model.gguf", "new", **keys))


@pytest.mark.parametrize(
    "keys",
    [
        {},
        {"general__type": "model", "new__attention__causal": True},
        {"new__pooling_type": 0},
        {"new__pooling_type": 4},  # a reranker that answers in text
        {"new__classifier__pooling_type": 1},
    ],
    ids=str,
)
def test_causal_models_are_not_refused(keys: dict[str, Any], tmp_path: Path) -> None:
    path = gguf_with(tmp_path / "model.gguf", "new", **keys)
    assert read_geometry(path).architecture == "new"


def test_a_tensor_of_an_encoder_makes_no_encoder(tmp_path: Path) -> None:
    writer = GGUFWriter(tmp_path / "model.gguf", "llama")
    for name in ("token_embd.weight", "enc.output_norm.weight", "v.patch_embd.weight"):
        writer.add_tensor(name, np.ones((4, 32), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    assert read_geometry(tmp_path / "model.gguf").architecture == "llama"


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_no_architecture_that_is_streamed_is_refused(architecture: str, tmp_path: Path) -> None:
    (path,) = write_tiny(architecture, tmp_path / "model.gguf", shape=SMALL)
    assert read_geometry(path).architecture == architecture
