"""Writing a small decoder as ONNX, with the names that optimum gives its inputs and outputs.

    python -m haversack.tools.models.onnx_decoder drafter.gguf FOLDER

writes FOLDER/model.onnx in float32 and FOLDER/tokenizer.json: what `--speculate FOLDER/model.onnx`
reads. For the architectures of `edge.learning.decoder_file` with a byte-level vocabulary.

Axis letters: B texts, T new tokens, P tokens before them, S = P + T, H heads, G heads of a group
with the same keys, D head size, C hidden size, V vocabulary.
"""

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

from haversack.devices.errors import ModelFileError
from haversack.devices.units import format_bytes
from haversack.edge.learning.decoder_file import DecoderFile, read_decoder
from haversack.tools.command_line import tool
from haversack.tools.models.gguf_stream import load_gguf_package

_OPSET, _IR = 17, 8
_SPECIAL_TOKEN = 3  # llama_token_type: control


class _Graph:
    """Nodes as they are added, with the constants and weights that they use."""

    def __init__(self, decoder: DecoderFile, most_tokens: int) -> None:
        self.decoder, self.nodes, self.initial = decoder, list[Any](), list[Any]()
        self._names = set[str]()
        half = np.arange(decoder.head_dim // 2) / (decoder.head_dim // 2)
        angles = np.arange(most_tokens)[:, None] * decoder.rope_theta**-half
        self.weight("cos", np.cos(angles).astype(np.float32))
        self.weight("sin", np.sin(angles).astype(np.float32))

    def weight(self, name: str, values: npt.NDArray[Any]) -> str:
        if name not in self._names:
            self._names.add(name)
            self.initial.append(numpy_helper.from_array(np.ascontiguousarray(values), name))
        return name

    def numbers(self, *values: int) -> str:
        return self.weight("i" + "_".join(map(str, values)), np.array(values, np.int64))

    def add(self, kind: str, *inputs: str, name: str = "", **attributes: Any) -> str:
        name = name or f"n{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, list(inputs), [name], **attributes))
        return name

    def norm(self, x: str, weight: str) -> str:
        eps = self.weight("eps", np.array(self.decoder.rms_norm_eps, np.float32))
        mean = self.add("ReduceMean", self.add("Mul", x, x), axes=[-1])
        root = self.add("Sqrt", self.add("Add", mean, eps))
        return self.add("Mul", self.add("Div", x, root), weight)

    def linear(self, x: str, name: str) -> str:
        found = self.add("MatMul", x, f"{name}.weight")
        bias = f"{name}.bias"
        return self.add("Add", found, bias) if bias in self._names else found

    def heads(self, x: str, number: int) -> str:
        """(B, T, H D) to (B, H, T, D)"""
        split = self.add("Reshape", x, self.numbers(0, 0, number, self.decoder.head_dim))
        return self.add("Transpose", split, perm=[0, 2, 1, 3])

    def rotated(self, x: str) -> str:
        half = self.decoder.head_dim // 2
        sides = self.numbers(half, half)
        low, high = f"{x}_low", f"{x}_high"
        self.nodes.append(helper.make_node("Split", [x, sides], [low, high], axis=-1))
        mul = [[self.add("Mul", side, angle) for angle in ("c", "s")] for side in (low, high)]
        first = self.add("Sub", mul[0][0], mul[1][1])
        return self.add("Concat", first, self.add("Add", mul[1][0], mul[0][1]), axis=-1)

    def attention(self, x: str, layer: int) -> str:
        decoder, block = self.decoder, f"blk.{layer}"
        groups = decoder.num_heads // decoder.num_kv_heads
        q = self.heads(self.linear(x, f"{block}.attn_q"), decoder.num_heads)
        k = self.heads(self.linear(x, f"{block}.attn_k"), decoder.num_kv_heads)
        v = self.heads(self.linear(x, f"{block}.attn_v"), decoder.num_kv_heads)
        if f"{block}.attn_q_norm.weight" in self._names:
            q = self.norm(q, f"{block}.attn_q_norm.weight")
            k = self.norm(k, f"{block}.attn_k_norm.weight")
        q, k = self.rotated(q), self.rotated(k)
        k, v = (
            self.add(
                "Concat",
                f"past_key_values.{layer}.{kind}",
                new,
                axis=2,
                name=f"present.{layer}.{kind}",
            )
            for kind, new in (("key", k), ("value", v))
        )
        shape = self.numbers(0, decoder.num_kv_heads, groups, -1, decoder.head_dim)
        q = self.add("Reshape", q, shape)  # (B, H / G, G, T, D)
        one = self.numbers(2)
        k, v = self.add("Unsqueeze", k, one), self.add("Unsqueeze", v, one)
        k = self.add("Transpose", k, perm=[0, 1, 2, 4, 3])
        scale = self.weight("scale", np.array(decoder.head_dim**-0.5, np.float32))
        scores = self.add("Mul", self.add("MatMul", q, k), scale)
        chances = self.add("Softmax", self.add("Add", scores, "hidden_places"), axis=-1)
        mixed = self.add("MatMul", chances, v)
        shape = self.numbers(0, decoder.num_heads, -1, decoder.head_dim)
        mixed = self.add("Transpose", self.add("Reshape", mixed, shape), perm=[0, 2, 1, 3])
        width = decoder.num_heads * decoder.head_dim
        joined = self.add("Reshape", mixed, self.numbers(0, 0, width))
        return self.linear(joined, f"{block}.attn_output")

    def places(self) -> None:
        """Cosines and sines of the new places, and which places each of them must not see."""
        one = self.numbers(1)
        for table, name in (("cos", "c"), ("sin", "s")):
            found = self.add("Gather", table, "position_ids")
            self.add("Unsqueeze", found, one, name=name)  # (B, 1, T, D / 2)
        length = self.add("Gather", self.add("Shape", "attention_mask"), self.weight("at", _ONE))
        zero, step = self.weight("zero", _ZERO), self.weight("step", _ONE)
        every = self.add("Range", zero, length, step)
        new = self.add("Unsqueeze", "position_ids", self.numbers(2))
        sees = self.add("LessOrEqual", every, new)  # (B, T, S)
        real = self.add("Unsqueeze", self.add("Cast", "attention_mask", to=TensorProto.BOOL), one)
        none = self.weight("none", np.array(0, np.float32))
        never = self.weight("never", np.array(-1e9, np.float32))
        added = self.add("Where", self.add("And", sees, real), none, never)
        self.add("Unsqueeze", added, self.numbers(1, 2), name="hidden_places")

    def decoded(self) -> None:
        self.places()
        hidden = self.add("Gather", "token_embd", "input_ids")
        for layer in range(self.decoder.num_layers):
            block = f"blk.{layer}"
            normed = self.norm(hidden, f"{block}.attn_norm.weight")
            hidden = self.add("Add", hidden, self.attention(normed, layer))
            normed = self.norm(hidden, f"{block}.ffn_norm.weight")
            gate = self.linear(normed, f"{block}.ffn_gate")
            gate = self.add("Mul", gate, self.add("Sigmoid", gate))
            gated = self.add("Mul", gate, self.linear(normed, f"{block}.ffn_up"))
            hidden = self.add("Add", hidden, self.linear(gated, f"{block}.ffn_down"))
        normed = self.norm(hidden, "output_norm.weight")
        self.add("MatMul", normed, "output.weight", name="logits")


_ZERO, _ONE = np.array(0, np.int64), np.array(1, np.int64)


def write_onnx(source: Path, path: Path, most_tokens: int | None = None) -> None:
    """Write the decoder in the GGUF `source` to `path`, float32, for texts of at most
    `most_tokens`, or as long as it was trained for. Raises ModelFileError."""
    decoder = read_decoder(source)
    graph = _Graph(decoder, most_tokens or decoder.ctx_tokens)
    for name, values in decoder.weights():
        if name == "token_embd.weight":
            graph.weight("token_embd", values)
            if "output.weight" not in decoder.tensors:
                graph.weight("output.weight", values.T)
        else:
            graph.weight(name, values.T if values.ndim > 1 else values)
    graph.decoded()
    num_tokens = decoder.tensors["token_embd.weight"].shape[1]
    made = helper.make_graph(
        graph.nodes, "decoder", _inputs(decoder), _outputs(decoder, num_tokens), graph.initial
    )
    opset = [helper.make_opsetid("", _OPSET)]
    onnx.save(helper.make_model(made, opset_imports=opset, ir_version=_IR), str(path))


def _inputs(decoder: DecoderFile) -> list[Any]:
    counts = {"input_ids": "new", "attention_mask": "all", "position_ids": "new"}
    found = [
        helper.make_tensor_value_info(name, TensorProto.INT64, ["batch", length])
        for name, length in counts.items()
    ]
    return found + _kept(decoder, "past_key_values", "past")


def _outputs(decoder: DecoderFile, num_tokens: int) -> list[Any]:
    shape: list[str | int | None] = ["batch", "new", num_tokens]
    logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, shape)
    return [logits, *_kept(decoder, "present", "all")]


def _kept(decoder: DecoderFile, name: str, length: str) -> list[Any]:
    shape: list[str | int | None] = ["batch", decoder.num_kv_heads, length, decoder.head_dim]
    return [
        helper.make_tensor_value_info(f"{name}.{layer}.{kind}", TensorProto.FLOAT, shape)
        for layer in range(decoder.num_layers)
        for kind in ("key", "value")
    ]


def tokenizer_json(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Return the tokenizer of a GGUF with these `fields` as a tokenizer.json has it. Raises
    ModelFileError where it is not byte-level."""
    if fields.get("tokenizer.ggml.model") != "gpt2":
        raise ModelFileError("its vocabulary is not byte-level: give another model")
    tokens, kinds = fields["tokenizer.ggml.tokens"], fields["tokenizer.ggml.token_type"]
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False}
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    return {
        "version": "1.0",
        "added_tokens": [
            {"id": number, "content": tokens[number], "special": True, **flags}
            for number, kind in enumerate(kinds)
            if kind == _SPECIAL_TOKEN
        ],
        "pre_tokenizer": {**level, "use_regex": True},
        "decoder": level,
        "post_processor": _start(fields, tokens),
        "model": {
            "type": "BPE",
            "vocab": {token: number for number, token in enumerate(tokens)},
            "merges": fields["tokenizer.ggml.merges"],
        },
    }


def _start(fields: Mapping[str, Any], tokens: Sequence[str]) -> dict[str, Any] | None:
    """Return what puts the start token before a text, if the model wants one."""
    if not fields.get("tokenizer.ggml.add_bos_token"):
        return None
    number = int(fields["tokenizer.ggml.bos_token_id"])
    name = tokens[number]
    text = [{"SpecialToken": {"id": name, "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}]
    pair = [*text, {"Sequence": {"id": "B", "type_id": 1}}]
    special = {name: {"id": name, "ids": [number], "tokens": [name]}}
    return {"type": "TemplateProcessing", "single": text, "pair": pair, "special_tokens": special}


def write_folder(source: Path, folder: Path) -> Path:
    """Write the decoder in `source` and its tokenizer to `folder`; return the path of the ONNX
    file. Raises ModelFileError, HaversackError without the gguf package."""
    reader = load_gguf_package().GGUFReader(source)
    fields = {name: field.contents() for name, field in reader.fields.items()}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer_json(fields)))
    about = {
        "eos_token_id": fields["tokenizer.ggml.eos_token_id"],
        "max_position_embeddings": read_decoder(source).ctx_tokens,
    }
    (folder / "config.json").write_text(json.dumps(about))
    write_onnx(source, folder / "model.onnx")
    return folder / "model.onnx"


@tool
def main(arguments: Sequence[str] | None) -> int:
    """Write the files that the command line names; the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("source", type=Path, help="a GGUF")
    parser.add_argument("folder", type=Path, help="where model.onnx and tokenizer.json are written")
    given = parser.parse_args(arguments)
    path = write_folder(given.source, given.folder)
    print(f"{path}  {format_bytes(path.stat().st_size)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
