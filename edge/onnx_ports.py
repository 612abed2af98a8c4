"""What a text decoder in an ONNX file takes and gives: the names that optimum gives them."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from haversack.devices.errors import ModelFileError
from haversack.quant.onnx_file import FLOAT, FLOAT16, INT64, OnnxFile, OnnxValue, read_onnx

TOKENS, MASK, POSITIONS, LOGITS = "input_ids", "attention_mask", "position_ids", "logits"
_COUNTS = ("num_logits_to_keep",)  # a number; logits of the last token alone are wanted
_PAST = re.compile(r"past_key_values\.(\d+)\.(key|value)")
_EXPORT = "export it as `optimum-cli export onnx --task text-generation-with-past` does"
_KV_TYPES: dict[int, Any] = {FLOAT: np.float32, FLOAT16: np.float16}


@dataclass(frozen=True)
class OnnxPorts:
    """The inputs and outputs of a decoder that keeps keys and values between calls: those of each
    layer are (1, `num_heads`, tokens, `head_dim`). `pasts` and `presents` are their names, in the
    same order. `num_logits` is 0 where the file does not say it."""

    path: Path
    inputs: frozenset[str]
    counts: tuple[str, ...]
    pasts: tuple[str, ...]
    presents: tuple[str, ...]
    num_heads: int
    head_dim: int
    kv_dtype: Any
    num_logits: int
    weights_bytes: int
    largest_bytes: int

    @property
    def token_bytes(self) -> int:
        """Return the bytes of a token's keys and values."""
        return (
            len(self.pasts) * self.num_heads * self.head_dim * int(np.dtype(self.kv_dtype).itemsize)
        )


def read_ports(path: Path) -> OnnxPorts:
    """Return what the decoder at `path` takes and gives; no weight is read. Raises ModelFileError
    with what was found where it is none that can draft."""
    file = read_onnx(path)
    pasts = sorted(filter(_place, file.inputs), key=_place)
    presents = [each.name.replace("past_key_values", "present") for each in pasts]
    inputs = {each.name: each for each in file.inputs}
    known = {TOKENS, MASK, POSITIONS, *_COUNTS, *(each.name for each in pasts)}
    outputs = {each.name: each for each in file.outputs}
    missing = {TOKENS, MASK} - set(inputs) | {LOGITS, *presents} - set(outputs)
    if missing or not pasts or set(inputs) - known or inputs[TOKENS].element != INT64:
        raise ModelFileError(_refusal(file, set(inputs) - known))
    kinds = {(each.element, each.dims[1:2], each.dims[3:]) for each in pasts}
    first = pasts[0]
    if len(kinds) > 1 or len(first.dims) != 4 or 0 in (first.dims[1], first.dims[3]):
        raise ModelFileError(
            f"{path.name}: its layers keep keys and values of {len(kinds)} shapes, the first of"
            f" {list(first.dims)}: only (texts, heads, tokens, width) with known heads and width,"
            f" the same in all layers, can draft; {_EXPORT}"
        )
    if first.element not in _KV_TYPES or outputs[LOGITS].element not in _KV_TYPES:
        raise ModelFileError(f"{path.name} computes in a type other than float32 and float16")
    return OnnxPorts(
        path,
        frozenset(inputs),
        tuple(name for name in _COUNTS if name in inputs),
        tuple(each.name for each in pasts),
        tuple(presents),
        num_heads=first.dims[1],
        head_dim=first.dims[3],
        kv_dtype=_KV_TYPES[first.element],
        num_logits=(outputs[LOGITS].dims or (0,))[-1],
        weights_bytes=file.weights_bytes,
        largest_bytes=file.largest_bytes,
    )


def _place(value: OnnxValue) -> tuple[int | str, ...]:
    """Return which layer's keys or values an input is; nothing for another input."""
    match = _PAST.fullmatch(value.name)
    return (int(match[1]), match[2]) if match else ()


def _refusal(file: OnnxFile, unknown: set[str]) -> str:
    found = ", ".join(each.name for each in (*file.inputs, *file.outputs))[:200]
    why = f"it takes {', '.join(sorted(unknown))}" if unknown else "that is none of a text decoder"
    return (
        f"{file.path.name} cannot draft: it has {found or 'nothing'}, and {why}: {TOKENS},"
        f" {MASK}, past_key_values.* and {LOGITS}, present.* are needed; {_EXPORT}"
    )
