"""llama.cpp's answers show which models are not causal, without reading the file's keys."""

from functools import partial
from pathlib import Path
from typing import Any

import pytest

from haversack.devices.errors import ModelFileError
from haversack.devices.llama import ContextShape
from haversack.devices.llama_model import LlamaModel
from haversack.devices.needs import memory_needs
from haversack.tools.models.architectures import ARCHITECTURES, TinyShape
from haversack.tools.models.authoring import random_model
from haversack.tools.models.synth import random_values

SHAPE = ContextShape(ctx_tokens=128, batch_tokens=64, threads=1)
KEYS: dict[str, int | float | bool] = {
    "context_length": 128,
    "embedding_length": 64,
    "block_count": 2,
    "feed_forward_length": 64,
    "vocab_size": 64,
    "attention.head_count": 2,
    "attention.head_count_kv": 2,
    "attention.layer_norm_rms_epsilon": 1e-5,
}
EXPERTS: dict[str, int | float | bool] = {
    "expert_count": 4,
    "expert_used_count": 2,
    "expert_feed_forward_length": 64,
}
OTHER_KINDS: dict[str, tuple[dict[str, int | float | bool], str]] = {
    "llada": ({}, "a diffusion model"),
    "llada-moe": (EXPERTS, "a diffusion model"),
    "t5encoder": ({"attention.relative_buckets_count": 32}, "an encoder without a decoder"),
    "gemma-embedding": ({"attention.sliding_window": 64}, "without a memory of earlier tokens"),
    "llama-embed": ({"attention.causal": False}, "tokens attend to later ones"),
    "qwen3": ({"attention.causal": False}, "tokens attend to later ones"),
}


@pytest.mark.parametrize("architecture", OTHER_KINDS)
def test_other_kinds(architecture: str, tmp_path: Path) -> None:
    keys, kind = OTHER_KINDS[architecture]
    path = tmp_path / "model.gguf"
    metadata: dict[str, str | int | float | list[int]] = {
        "general.architecture": architecture,
        "tokenizer.ggml.model": "no_vocab",
        **{f"{architecture}.{name}": value for name, value in (KEYS | keys).items()},
    }
    random_model(metadata, partial(random_values, 0), path)
    model = LlamaModel(path, dry=True)
    with pytest.raises(ModelFileError, match=kind) as refused:
        memory_needs(model, SHAPE)
    model.close()
    assert str(refused.value).startswith(f"{path} is a")
    assert str(refused.value).endswith("haversack runs causal text models, give one")


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_no_architecture_that_is_streamed_is_refused(architecture: str, tiny_model: Any) -> None:
    shape = TinyShape(num_hidden_layers=2, num_experts=4, vocab_size=64)
    model = LlamaModel(tiny_model(architecture, shape=shape), dry=True)
    assert memory_needs(model, SHAPE).compute_bytes > 0
    model.close()
