"""The adapter file: low-rank changes of a drafter's layers, as llama.cpp reads them (a GGUF).

What was learnt of a model's texts by a drafter is kept from run to run beside the model's trunk
file. The file says which two it is of, and has a hash of all values: a damaged one and another
pair's are not used.
"""

import hashlib
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from haversack.devices.ggml import GgufHeader
from haversack.devices.storage import write_whole

Floats = npt.NDArray[np.float32]

_MAGIC, _VERSION, _ALIGNMENT = b"GGUF", 3, 32
_STRING, _FLOAT32 = 8, 6  # enum gguf_type
_F16 = 1  # enum ggml_type
_PAIR, _DIGEST = "haversack.pair", "haversack.digest"


def adapter_bytes(num_elements: int) -> int:
    """Return about how many bytes an adapter of so many values takes."""
    return 2 * num_elements


def write_adapter(path: Path, architecture: str, pair: str, changes: Mapping[str, Floats]) -> None:
    """Write `changes`, as `AdaptedDecoder.changes` gives them, to `path`, whole or not at all.
    Raises OSError."""
    tensors = {name: np.ascontiguousarray(values, np.float16) for name, values in changes.items()}
    data = b"".join(map(_padded, tensors.values()))
    rank = float(next(iter(tensors.values())).shape[0]) if tensors else 0.0
    about: dict[str, Any] = {
        "general.type": "adapter",
        "general.architecture": architecture,
        "adapter.type": "lora",
        "adapter.lora.alpha": rank,  # so that llama.cpp scales by one
        _PAIR: pair,
        _DIGEST: hashlib.sha256(data).hexdigest(),
    }
    head = _MAGIC + struct.pack("<IQQ", _VERSION, len(tensors), len(about))
    head += b"".join(_string(key) + _value(value) for key, value in about.items())
    offset = 0
    for name, values in tensors.items():
        sides = struct.pack("<IQQ", values.ndim, *reversed(values.shape))
        head += _string(name) + sides + struct.pack("<IQ", _F16, offset)
        offset += len(_padded(values))
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, head + b"\0" * (-len(head) % _ALIGNMENT) + data)


def _string(text: str) -> bytes:
    data = text.encode()
    return struct.pack("<Q", len(data)) + data


def _value(value: str | float) -> bytes:
    if isinstance(value, str):
        return struct.pack("<I", _STRING) + _string(value)
    return struct.pack("<If", _FLOAT32, value)


def _padded(values: npt.NDArray[np.float16]) -> bytes:
    data = values.tobytes()
    return data + b"\0" * (-len(data) % _ALIGNMENT)


def read_adapter(path: Path, pair: str) -> dict[str, Floats]:
    """Return the changes that `write_adapter` wrote for this pair. Raises ValueError for what it
    did not write, ModelFileError, FileNotFoundError, OSError."""
    data = path.read_bytes()
    with GgufHeader(path) as header:
        if header.value(_PAIR) != pair:
            raise ValueError("it was learnt by another drafter, or of another model")
        if header.value(_DIGEST) != hashlib.sha256(data[header.data_offset :]).hexdigest():
            raise ValueError("it is damaged")
        return {
            each.name: np.frombuffer(data, np.float16, each.num_bytes // 2, each.offset)
            .reshape(each.shape[1], each.shape[0])
            .astype(np.float32)
            for each in header.tensors
        }
