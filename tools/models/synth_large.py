"""Random models of the shape of Qwen3-30B-A3B and of any size, written with little memory.

Their text is noise, but bytes, shapes and kernels are those of the real model. Every matrix is a
random sequence of quantised pieces from a small dictionary: no two experts are alike, and writing a
byte costs one copy.

Routing is like that of trained models, because of two settings. The first columns of all token
embeddings are equal and strong, which makes some experts popular. Attention is weak: over random
keys it is a mean of the past and would make all tokens alike. With 24 layers, 150 random tokens use
35 of 128 experts effectively, a token reuses 0.34 of the experts of the token before, and an LRU
cache of a quarter of the experts hits 0.81. Recorded from Qwen3-30B-A3B: 39, 0.38 and 0.80.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from math import gcd, prod
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from haversack.tools.models.authoring import quantize_rows
from haversack.tools.models.gguf_stream import TensorPlan, Types, Value, type_of_layer, write_gguf

NUM_PIECES = 1024  # of a dictionary
PIECE_ELEMENTS = 256  # the largest block of llama.cpp's types
CHUNK_PIECES = 8192
WEIGHT_STD = 0.02
EMBEDDING_STD = 0.5
COMMON_STRENGTH = 3.0  # of the common columns, in standard deviations of the others
ATTENTION_STRENGTH = 0.2  # of attention's output; set in the norm before it
ROUTER_STD = 0.05


@dataclass(frozen=True)
class LargeOptions:
    """Sizes of a large model. `down_type` None: down projections have the type of the others."""

    num_experts: int = 128
    num_experts_per_tok: int = 8
    hidden_size: int = 2048
    moe_intermediate_size: int = 768
    num_attention_heads: int = 32
    num_key_value_heads: int = 4
    head_dim: int = 128
    vocab_size: int = 32000
    down_type: Types | None = None


def write_large(
    path: Path,
    *,
    layers: int = 24,
    block_type: str = "Q4_K",
    seed: int = 0,
    num_splits: int = 1,
    options: LargeOptions | None = None,
) -> list[Path]:
    """Write a random qwen3moe model, 8.5 GB by default; return its files, the one to load first.

    Every matrix but the router is in blocks of `block_type`. Writing needs less than 100 MB of
    memory for a model of any size. Raises ModelFileError for types that do not suit the sizes.
    """
    options = options or LargeOptions()
    plans = _plans(layers, block_type, options)
    source = _RandomTensors(np.random.default_rng(seed))
    metadata = _metadata(layers, options)
    return write_gguf(path, metadata, plans, source.chunks, num_splits=num_splits)


def _metadata(layers: int, options: LargeOptions) -> dict[str, Value]:
    keys: dict[str, Value] = {
        "context_length": 32768,
        "embedding_length": options.hidden_size,
        "block_count": layers,
        "feed_forward_length": options.moe_intermediate_size * options.num_experts_per_tok,
        "expert_feed_forward_length": options.moe_intermediate_size,
        "expert_count": options.num_experts,
        "expert_used_count": options.num_experts_per_tok,
        "vocab_size": options.vocab_size,
        "attention.head_count": options.num_attention_heads,
        "attention.head_count_kv": options.num_key_value_heads,
        "attention.key_length": options.head_dim,
        "attention.value_length": options.head_dim,
        "attention.layer_norm_rms_epsilon": 1e-6,
        "rope.freq_base": 1e6,
    }
    return {
        "general.architecture": "qwen3moe",
        "general.name": f"large random qwen3moe, {layers} layers",
        "tokenizer.ggml.model": "no_vocab",
        **{f"qwen3moe.{key}": value for key, value in keys.items()},
    }


def _plans(layers: int, block_type: str, options: LargeOptions) -> list[TensorPlan]:
    hidden = options.hidden_size
    return [
        TensorPlan("token_embd.weight", (options.vocab_size, hidden), block_type),
        TensorPlan("output.weight", (options.vocab_size, hidden), block_type),
        TensorPlan("output_norm.weight", (hidden,), "F32"),
        *(plan for layer in range(layers) for plan in _layer_plans(layer, block_type, options)),
    ]


def _layer_plans(layer: int, block_type: str, options: LargeOptions) -> list[TensorPlan]:
    hidden, width, experts = options.hidden_size, options.moe_intermediate_size, options.num_experts
    query = options.num_attention_heads * options.head_dim
    key = options.num_key_value_heads * options.head_dim
    down_type = type_of_layer(options.down_type or block_type, layer)
    tensors: dict[str, tuple[tuple[int, ...], str]] = {
        "attn_norm": ((hidden,), "F32"),
        "ffn_norm": ((hidden,), "F32"),
        "attn_q_norm": ((options.head_dim,), "F32"),
        "attn_k_norm": ((options.head_dim,), "F32"),
        "attn_q": ((query, hidden), block_type),
        "attn_k": ((key, hidden), block_type),
        "attn_v": ((key, hidden), block_type),
        "attn_output": ((hidden, query), block_type),
        "ffn_gate_inp": ((experts, hidden), "F32"),
        "ffn_gate_exps": ((experts, width, hidden), block_type),
        "ffn_up_exps": ((experts, width, hidden), block_type),
        "ffn_down_exps": ((experts, hidden, width), down_type),
    }
    return [
        TensorPlan(f"blk.{layer}.{name}.weight", shape, kind)
        for name, (shape, kind) in tensors.items()
    ]


class _RandomTensors:
    """Makes the values of each planned tensor, chunk by chunk, as `write_gguf` asks for them."""

    def __init__(self, rng: np.random.Generator) -> None:
        self._rng = rng
        self._dictionaries: dict[tuple[str, int], npt.NDArray[np.uint8]] = {}

    def chunks(self, plan: TensorPlan) -> Iterator[npt.NDArray[Any]]:
        if len(plan.shape) == 1:
            scale = ATTENTION_STRENGTH if "attn_norm" in plan.name else 1.0
            return iter([np.full(plan.shape, scale, np.float32)])
        if "ffn_gate_inp" in plan.name:
            return iter([self._normal(plan.shape, ROUTER_STD)])
        if "token_embd" in plan.name:
            return self._embeddings(plan)
        return self._matrix(plan)

    def _normal(self, shape: tuple[int, ...], std: float) -> npt.NDArray[np.float32]:
        return self._rng.standard_normal(shape, np.float32) * np.float32(std)

    def _matrix(self, plan: TensorPlan) -> Iterator[npt.NDArray[Any]]:
        elements = gcd(PIECE_ELEMENTS, plan.shape[-1])
        key = (plan.block_type, elements)
        if key not in self._dictionaries:
            values = self._normal((NUM_PIECES, elements), WEIGHT_STD)
            self._dictionaries[key] = quantize_rows(values, plan.block_type)
        num_pieces = prod(plan.shape) // elements
        for start in range(0, num_pieces, CHUNK_PIECES):
            count = min(CHUNK_PIECES, num_pieces - start)
            yield self._dictionaries[key][self._rng.integers(0, NUM_PIECES, count)]

    def _embeddings(self, plan: TensorPlan) -> Iterator[npt.NDArray[Any]]:
        vocab_size, hidden_size = plan.shape
        elements = gcd(PIECE_ELEMENTS, hidden_size)
        num_columns = hidden_size // elements  # in pieces
        num_common = num_columns // 8
        values = self._normal((num_common + NUM_PIECES, elements), EMBEDDING_STD)
        values[:num_common] *= COMMON_STRENGTH
        dictionary = quantize_rows(values, plan.block_type)
        for start in range(0, vocab_size, NUM_PIECES):
            num_rows = min(NUM_PIECES, vocab_size - start)
            pieces = self._rng.integers(num_common, len(dictionary), (num_rows, num_columns))
            pieces[:, :num_common] = np.arange(num_common)
            yield dictionary[pieces]
