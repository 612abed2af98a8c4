"""Writing a trained decoder as a GGUF (qwen3moe with experts, qwen3 without), or as ONNX.

    python -m haversack.tools.training.export FOLDER model.gguf --format Q4_K_M  # of a run of train
    python -m haversack.tools.training.export twin.gguf twin.onnx                # of a written file

A format is a block type for all matrices (F16, Q8_0, Q6_K), or llama.cpp's mixture Q4_K_M: 4 bits,
and 6 where they help most. Norms and routers stay 32-bit floats.
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

from haversack.devices.errors import ModelFileError
from haversack.devices.units import format_bytes
from haversack.tools.command_line import tool
from haversack.tools.models.authoring import quantize_rows
from haversack.tools.models.gguf_stream import TensorPlan, Value, load_gguf_package, write_gguf
from haversack.tools.training.decoder import Decoder, DecoderShape
from haversack.tools.training.vocabulary import Vocabulary

FORMATS = {"F16": 1, "Q8_0": 7, "Q4_K_M": 15, "Q6_K": 18}  # with their numbers in general.file_type
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


def export_onnx(model: Decoder, path: Path) -> None:
    """Write a dense `model` to `path` as one ONNX file: `tokens` (B, T) int64 to `logits` (B, T, V)
    float32, for any B and T. Raises ModelFileError for a mixture, whose product ONNX lacks."""
    if model.shape.num_experts:
        raise ModelFileError("ONNX has no product over groups of experts: give a dense model")
    dynamic = {0: torch.export.Dim("batch"), 1: torch.export.Dim("length")}
    torch.onnx.export(
        model.eval(),
        (torch.zeros(2, 16, dtype=torch.int64),),
        str(path),
        input_names=["tokens"],
        output_names=["logits"],
        dynamic_shapes={"tokens": dynamic},
        dynamo=True,
        external_data=False,
        verbose=False,
    )


def gguf_tensors(model: Decoder) -> dict[str, npt.NDArray[np.float32]]:
    """Return the parameters by the names of their GGUF tensors, float32."""
    return {
        f"{name}.weight": parameter.detach().float().cpu().numpy()
        for name, parameter in model.named_parameters()
    }


def block_type(name: str, num_layers: int, format: str) -> str:
    """Return the type that the tensor `name` has in a file of `format`."""
    if _ALWAYS_F32.search(name):
        return "F32"
    if format != "Q4_K_M":
        return format
    matrix = _LAYER_MATRIX.match(name)
    precise = name == "output.weight" or (matrix and _has_more_bits(int(matrix[1]), num_layers))
    return "Q6_K" if precise else "Q4_K"


def _has_more_bits(layer: int, num_layers: int) -> bool:
    """Return whether llama.cpp gives 6 bits to a layer's values and down projections: to the first
    and last eighth of the layers, and to every third between."""
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
    """Load the model and vocabulary of a run's folder. Raises ModelFileError if it has no
    checkpoint."""
    checkpoint = folder / "checkpoint.pt"
    if not checkpoint.exists():
        raise ModelFileError(f"{folder} has no checkpoint.pt: give the folder of a training run")
    state = torch.load(checkpoint, map_location="cpu", weights_only=True)
    model = Decoder(DecoderShape(**state["recipe"]["shape"]))
    model.load_state_dict(state["model"])
    return model, Vocabulary.load(folder / "tokenizer.json")


def load_gguf(path: Path) -> tuple[Decoder, Vocabulary]:
    """Load the model and vocabulary of a file that `export_gguf` wrote, its blocks turned into
    floats.

    Raises ModelFileError for another architecture, HaversackError without the gguf package.
    """
    gguf = load_gguf_package()
    if not path.is_file():
        raise ModelFileError(f"{path} does not exist: give the path of a GGUF")
    reader = gguf.GGUFReader(path)
    fields = {name: field.contents() for name, field in reader.fields.items()}
    model = Decoder(_shape_of(path, fields))
    floats = {
        tensor.name.removesuffix(".weight"): torch.from_numpy(
            gguf.quants.dequantize(tensor.data, tensor.tensor_type).copy()
        )
        for tensor in reader.tensors
    }
    model.load_state_dict(floats)
    merges = fields["tokenizer.ggml.merges"]
    return model, Vocabulary.of_pieces(fields["tokenizer.ggml.tokens"], merges)


def _shape_of(path: Path, fields: Mapping[str, Any]) -> DecoderShape:
    architecture = fields["general.architecture"]
    if architecture not in ("qwen3", "qwen3moe"):
        raise ModelFileError(f"{path} is {architecture}: give a file of tools.training.export")

    def value(key: str, default: int = 0) -> Any:
        return fields.get(f"{architecture}.{key}", default)

    dense = DecoderShape()
    used = value("expert_used_count", dense.num_experts_per_tok)
    return DecoderShape(
        vocab_size=len(fields["tokenizer.ggml.tokens"]),
        hidden_size=value("embedding_length"),
        num_hidden_layers=value("block_count"),
        num_attention_heads=value("attention.head_count"),
        num_key_value_heads=value("attention.head_count_kv"),
        head_dim=value("attention.key_length"),
        num_experts=value("expert_count"),
        num_experts_per_tok=used,
        moe_intermediate_size=value("feed_forward_length") // used,
        context_tokens=value("context_length"),
        rope_theta=value("rope.freq_base"),
        rms_norm_eps=value("attention.layer_norm_rms_epsilon"),
    )


# -------------------------------------------------------------------- program
@tool
def main(arguments: Sequence[str] | None) -> int:
    """Write the file that the command line describes; the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("source", type=Path, help="the folder of a training run, or a GGUF of one")
    parser.add_argument("path", type=Path, help="the file to write, *.gguf or *.onnx")
    parser.add_argument("--format", choices=tuple(FORMATS), default="Q8_0", help="of a GGUF")
    given = parser.parse_args(arguments)
    load = load_run if given.source.is_dir() else load_gguf
    model, vocabulary = load(given.source)
    if given.path.suffix == ".onnx":
        export_onnx(model, given.path)
    else:
        export_gguf(model, vocabulary, given.path, given.format)
    print(f"{given.path}  {format_bytes(given.path.stat().st_size)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
