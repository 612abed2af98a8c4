"""A trained decoder as a GGUF: qwen3moe with experts, qwen3 without.

    python -m haversack.tools.export FOLDER model.gguf --format Q4_K_M   # of a run of tools.train

Formats name a block type for all matrices (F16, Q8_0, Q6_K) or, as Q4_K_M, llama.cpp's mixture:
4 bits, and 6 where they pay most. Norms and routers stay 32-bit floats.
"""

import argparse
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from haversack.devices.authoring import quantize_rows
from haversack.devices.errors import HaversackError, ModelFileError
from haversack.devices.units import format_bytes
from haversack.tools.decoder import Decoder, DecoderShape
from haversack.tools.gguf_stream import TensorPlan, Value, write_gguf
from haversack.tools.vocabulary import Vocabulary

FORMATS = {"F16": 1, "Q8_0": 7, "Q4_K_M": 15, "Q6_K": 18}  # their numbers in general.file_type
DESCRIPTION: Mapping[str, Value] = {
    "general.license": "cc-by-sa-4.0",
    "general.languages": ["en"],
    "general.type": "model",
}
_ALWAYS_F32 = re.compile(r"norm|ffn_gate_inp")
_LAYER_MATRIX = re.compile(r"blk\.(\d+)\.(attn_v|ffn_down(_exps)?)\.")


def export_gguf(
    model: Decoder, vocabulary: Vocabulary, path: Path, format: str, name: str = "haversack tales"
) -> None:
    """Write `model` to `path`; equal weights give equal bytes.

    Raises ModelFileError for a format not in `FORMATS` and widths it cannot hold.
    """
    if format not in FORMATS:
        raise ModelFileError(f'"{format}" is no format: choose one of {", ".join(FORMATS)}')
    tensors = gguf_tensors(model)
    num_layers = model.shape.num_hidden_layers
    plans = [
        TensorPlan(key, data.shape, block_type(key, num_layers, format))
        for key, data in tensors.items()
    ]

    def chunks(plan: TensorPlan) -> Iterator[npt.NDArray[Any]]:
        yield quantize_rows(tensors[plan.name], plan.block_type)

    metadata = {**_architecture_metadata(model.shape), **DESCRIPTION, **vocabulary.metadata()}
    metadata |= {"general.name": name, "general.file_type": FORMATS[format]}
    write_gguf(path, metadata, plans, chunks)


def gguf_tensors(model: Decoder) -> dict[str, npt.NDArray[np.float32]]:
    """The parameters by the names of their GGUF tensors, float32."""
    return {
        f"{name}.weight": parameter.detach().float().cpu().numpy()
        for name, parameter in model.named_parameters()
    }


def block_type(name: str, num_layers: int, format: str) -> str:
    """The type that the tensor `name` has in a file of `format`."""
    if _ALWAYS_F32.search(name):
        return "F32"
    if format != "Q4_K_M":
        return format
    matrix = _LAYER_MATRIX.match(name)
    precise = name == "output.weight" or (matrix and _has_more_bits(int(matrix[1]), num_layers))
    return "Q6_K" if precise else "Q4_K"


def _has_more_bits(layer: int, num_layers: int) -> bool:
    """Whether llama.cpp gives 6 bits to a layer's values and down projections: the first and last
    eighth of the layers, and every third between."""
    eighth = num_layers // 8
    return layer < eighth or layer >= 7 * num_layers // 8 or (layer - eighth) % 3 == 2


def _architecture_metadata(shape: DecoderShape) -> dict[str, Value]:
    architecture = "qwen3moe" if shape.num_experts else "qwen3"
    keys: dict[str, Value] = {
        "vocab_size": shape.vocab_size,
        "context_length": shape.context_tokens,
        "embedding_length": shape.hidden_size,
        "block_count": shape.num_hidden_layers,
        "feed_forward_length": shape.dense_intermediate_size,
        "attention.head_count": shape.num_attention_heads,
        "attention.head_count_kv": shape.num_key_value_heads,
        "attention.key_length": shape.head_dim,
        "attention.value_length": shape.head_dim,
        "attention.layer_norm_rms_epsilon": shape.rms_norm_eps,
        "rope.freq_base": shape.rope_theta,
    }
    if shape.num_experts:
        keys |= {
            "expert_count": shape.num_experts,
            "expert_used_count": shape.num_experts_per_tok,
            "expert_feed_forward_length": shape.moe_intermediate_size,
        }
    return {"general.architecture": architecture} | {
        f"{architecture}.{key}": value for key, value in keys.items()
    }


def load_run(folder: Path) -> tuple[Decoder, Vocabulary]:
    """The model and vocabulary of a run's folder. Raises ModelFileError if it has no checkpoint."""
    checkpoint = folder / "checkpoint.pt"
    if not checkpoint.exists():
        raise ModelFileError(f"{folder} has no checkpoint.pt: give the folder of a training run")
    state = torch.load(checkpoint, map_location="cpu", weights_only=True)
    model = Decoder(DecoderShape(**state["recipe"]["shape"]))
    model.load_state_dict(state["model"])
    return model, Vocabulary.load(folder / "tokenizer.json")


# -------------------------------------------------------------------- program
def main(arguments: Sequence[str] | None = None) -> int:
    """Write the file that the command line describes; the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, help="of a training run")
    parser.add_argument("path", type=Path, help="of the file to write")
    parser.add_argument("--format", choices=tuple(FORMATS), default="Q8_0")
    given = parser.parse_args(arguments)
    try:
        model, vocabulary = load_run(given.folder)
        export_gguf(model, vocabulary, given.path, given.format)
    except (HaversackError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"{given.path}  {format_bytes(given.path.stat().st_size)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
