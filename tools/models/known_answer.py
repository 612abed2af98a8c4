"""The known-answer mixture of experts, made of the trained dense model stories260K.

    python -m haversack.tools.models.known_answer model.gguf
    python -m haversack.tools.models.known_answer split.gguf --construction split --experts 4

In both constructions the weighted sum of the experts equals the dense feed-forward layer. So a
greedy run must give `expected_greedy.txt` to the byte.

upcycle: each expert is the whole layer, routers are random, the 2 chosen weights sum to 1.
split: each expert is a part of the hidden units, all are used with weight 1/E, and the down
projections hold E times their values.

Axis letters: C hidden size, F feed-forward width, E experts.
"""

import argparse
import struct
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from haversack.devices.units import format_bytes
from haversack.tools.command_line import tool
from haversack.tools.models.authoring import quantize_rows
from haversack.tools.models.gguf_stream import TensorPlan, Value, write_gguf

Construction = Literal["upcycle", "split"]
Array = npt.NDArray[np.float32]

SOURCES = Path(__file__).parent / "stories260k"

_BLOCK_MULTIPLE = 32  # split experts are padded with zeros to a multiple of this width
_ROUTER_SEED, _ROUTER_STD = 260, 0.25
_UNKNOWN_ID, _BOS_ID, _EOS_ID, _FIRST_PIECE_ID = 0, 1, 2, 259
_NORMAL, _UNKNOWN, _CONTROL, _BYTE = 1, 2, 3, 6  # llama.cpp's token types
_TEMPLATE = "{% for message in messages %}{{ message['content'] }}{% endfor %}"


def write_known_answer(
    path: Path, *, construction: Construction = "upcycle", num_experts: int = 8
) -> None:
    """Write the known-answer model; equal arguments give equal bytes.

    Raises ValueError for a number of experts that would not give the exact text.
    """
    if num_experts not in (2, 4, 8):
        raise ValueError(f"num_experts {num_experts} is not 2, 4 or 8, for which 1/E is exact")
    dense = _Checkpoint(SOURCES / "stories260K.bin")
    build = _upcycled_experts if construction == "upcycle" else _split_experts
    tensors = dense.trunk_tensors()
    for layer in range(dense.num_hidden_layers):
        tensors |= build(dense, layer, num_experts)
    plans = [
        TensorPlan(name, data.shape, _stored_type(name, data)) for name, data in tensors.items()
    ]

    def chunks(plan: TensorPlan) -> Iterator[npt.NDArray[Any]]:
        yield quantize_rows(tensors[plan.name], plan.block_type)

    keys = dense.keys() | {
        "feed_forward_length": tensors["blk.0.ffn_gate_exps.weight"].shape[1],
        "expert_count": num_experts,
        "expert_used_count": 2 if construction == "upcycle" else num_experts,
    }
    metadata = _general_metadata(construction) | {f"llama.{k}": v for k, v in keys.items()}
    write_gguf(path, metadata | _tokenizer_metadata(SOURCES / "tok512.bin"), plans, chunks)


def _stored_type(name: str, data: Array) -> str:
    return "F32" if data.ndim == 1 or "ffn_gate_inp" in name else "F16"


# ----------------------------------------------------------------- checkpoint
class _Checkpoint:
    """A llama2.c checkpoint, version 0, with the output tied to the embedding."""

    def __init__(self, path: Path) -> None:
        data = path.read_bytes()
        header = struct.unpack_from("<7i", data)
        self.hidden_size, self.intermediate_size, self.num_hidden_layers = header[:3]
        self.num_heads, self.num_key_value_heads, self.vocab_size, self.context = header[3:]
        values = np.frombuffer(data, "<f4", offset=28)
        c, f, n = self.hidden_size, self.intermediate_size, self.num_hidden_layers
        kv = c // self.num_heads * self.num_key_value_heads
        shapes = {
            "token_embd": (self.vocab_size, c),
            "attn_norm": (n, c),
            "attn_q": (n, c, c),
            "attn_k": (n, kv, c),
            "attn_v": (n, kv, c),
            "attn_output": (n, c, c),
            "ffn_norm": (n, c),
            "gate": (n, f, c),
            "down": (n, c, f),
            "up": (n, f, c),
            "output_norm": (c,),
        }
        self.arrays: dict[str, Array] = {}
        for name, shape in shapes.items():
            count = int(np.prod(shape))
            self.arrays[name] = values[:count].reshape(shape)
            values = values[count:]

    def trunk_tensors(self) -> dict[str, Array]:
        """Return the tensors that stay unchanged, by their GGUF names."""
        tensors = {f"{name}.weight": self.arrays[name] for name in ("token_embd", "output_norm")}
        for layer in range(self.num_hidden_layers):
            for name in ("attn_norm", "attn_q", "attn_k", "attn_v", "attn_output", "ffn_norm"):
                tensors[f"blk.{layer}.{name}.weight"] = self.arrays[name][layer]
        return tensors

    def keys(self) -> dict[str, Value]:
        """Return the key-values of architecture `llama` that experts do not change."""
        return {
            "vocab_size": self.vocab_size,
            "context_length": self.context,
            "embedding_length": self.hidden_size,
            "block_count": self.num_hidden_layers,
            "attention.head_count": self.num_heads,
            "attention.head_count_kv": self.num_key_value_heads,
            "attention.layer_norm_rms_epsilon": 1e-5,
            "rope.dimension_count": self.hidden_size // self.num_heads,
            "rope.freq_base": 10000.0,
        }


# -------------------------------------------------------------------- experts
def _upcycled_experts(dense: _Checkpoint, layer: int, num_experts: int) -> dict[str, Array]:
    # RandomState, not a Generator: its stream is the same in every version of NumPy.
    random = np.random.RandomState([_ROUTER_SEED, layer])
    router = random.standard_normal((num_experts, dense.hidden_size)) * _ROUTER_STD
    experts = {
        kind: np.repeat(dense.arrays[kind][layer][None], num_experts, axis=0)
        for kind in ("gate", "up", "down")
    }
    return _named(layer, router.astype(np.float32), experts)


def _split_experts(dense: _Checkpoint, layer: int, num_experts: int) -> dict[str, Array]:
    groups = np.array_split(np.arange(dense.intermediate_size), num_experts)
    width = -(-len(groups[0]) // _BLOCK_MULTIPLE) * _BLOCK_MULTIPLE
    gate, up = (np.zeros((num_experts, width, dense.hidden_size), np.float32) for _ in range(2))
    down = np.zeros((num_experts, dense.hidden_size, width), np.float32)
    for expert, group in enumerate(groups):
        gate[expert, : len(group)] = dense.arrays["gate"][layer][group]
        up[expert, : len(group)] = dense.arrays["up"][layer][group]
        down[expert, :, : len(group)] = dense.arrays["down"][layer][:, group] * num_experts
    router = np.zeros((num_experts, dense.hidden_size), np.float32)  # all weights are 1/E
    return _named(layer, router, {"gate": gate, "up": up, "down": down})


def _named(layer: int, router: Array, experts: dict[str, Array]) -> dict[str, Array]:
    named = {f"blk.{layer}.ffn_{kind}_exps.weight": data for kind, data in experts.items()}
    return {f"blk.{layer}.ffn_gate_inp.weight": router, **named}


# ------------------------------------------------------------------- metadata
def _general_metadata(construction: Construction) -> dict[str, Value]:
    return {
        "general.architecture": "llama",
        "general.type": "model",
        "general.name": f"stories260K MoE ({construction})",
        "general.description": "A mixture of experts with the greedy text of the dense stories260K",
        "general.license": "mit",
        "general.source.url": "https://github.com/karpathy/llama2.c/blob/master/doc/stories260K.md",
        "general.source.repo_url": "https://github.com/karpathy/llama2.c",
        "general.languages": ["en"],
        "general.file_type": 1,  # mostly F16
    }


def _tokenizer_metadata(path: Path) -> dict[str, Value]:
    pieces = list(_read_pieces(path))
    texts = [text.decode().replace(" ", "\u2581") for text, _ in pieces]
    texts[_UNKNOWN_ID], texts[_BOS_ID], texts[_EOS_ID] = "<unk>", "<s>", "</s>"
    num_normal = len(pieces) - _FIRST_PIECE_ID
    types = [_UNKNOWN, _CONTROL, _CONTROL] + [_BYTE] * 256 + [_NORMAL] * num_normal
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": texts,
        "tokenizer.ggml.scores": [score for _, score in pieces],
        "tokenizer.ggml.token_type": types,
        "tokenizer.ggml.unknown_token_id": _UNKNOWN_ID,
        "tokenizer.ggml.bos_token_id": _BOS_ID,
        "tokenizer.ggml.eos_token_id": _EOS_ID,
        "tokenizer.ggml.add_bos_token": True,
        "tokenizer.ggml.add_eos_token": False,
        "tokenizer.ggml.add_space_prefix": True,
        "tokenizer.chat_template": _TEMPLATE,
    }


def _read_pieces(path: Path) -> Iterator[tuple[bytes, float]]:
    """Text and score of each piece of a llama2.c tokenizer file."""
    data = path.read_bytes()
    position = 4  # the length of the longest piece comes first
    while position < len(data):
        score, num_bytes = struct.unpack_from("<fi", data, position)
        position += 8
        yield data[position : position + num_bytes], score
        position += num_bytes


# -------------------------------------------------------------------- program
@tool
def main(arguments: Sequence[str] | None) -> int:
    """Write the model that the command line describes; the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("path", type=Path)
    parser.add_argument("--construction", choices=("upcycle", "split"), default="upcycle")
    parser.add_argument("--experts", type=int, default=8)
    given = parser.parse_args(arguments)
    write_known_answer(given.path, construction=given.construction, num_experts=given.experts)
    print(f"{given.path}  {format_bytes(given.path.stat().st_size)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
