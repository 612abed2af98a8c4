"""Writing a GGUF file, or its split parts, without holding the tensors in memory."""

import importlib
import io
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import ceil, prod
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from haversack.devices.errors import HaversackError
from haversack.quant.blocks import BLOCK_TYPES
from haversack.tools.models.authoring import row_bytes

Types = str | tuple[str, ...]  # one block type, or one per layer, repeated
Value = str | int | float | bool | list[str] | list[int] | list[float]


def type_of_layer(types: Types, layer: int) -> str:
    return types if isinstance(types, str) else types[layer % len(types)]


@dataclass(frozen=True)
class TensorPlan:
    """One tensor to be written: `shape` slowest axis first, in blocks of `block_type`."""

    name: str
    shape: tuple[int, ...]
    block_type: str

    @property
    def num_bytes(self) -> int:
        return prod(self.shape[:-1]) * row_bytes(self.block_type, self.shape[-1])


Chunks = Callable[[TensorPlan], Iterable[npt.NDArray[Any]]]


def write_gguf(
    path: Path,
    metadata: Mapping[str, Value],
    tensors: Sequence[TensorPlan],
    chunks: Chunks,
    *,
    num_splits: int = 1,
) -> list[Path]:
    """Write a model; return its files, the one to load first: `path`, or its `num_splits` parts.

    `chunks` is called for each tensor in turn and gives its bytes piece by piece. Raises
    HaversackError without the gguf package, ValueError if there are too few tensors to split or
    the pieces of a tensor do not add up to its size.
    """
    writer = _open_writer(path, metadata, tensors, num_splits)
    try:
        parts = list(zip(writer.fout, writer.tensors, strict=True))
        plans = {plan.name: plan for plan in tensors}
        for file, names in parts:
            for name in names:
                _write_tensor(file, plans[name], chunks)
                writer.write_padding(file, plans[name].num_bytes)
        return [Path(file.name) for file, _ in parts]
    finally:
        writer.close()


def load_gguf_package() -> Any:
    """Import the `gguf` module. If it is absent, raises HaversackError with the install command."""
    try:
        return importlib.import_module("gguf")
    except ModuleNotFoundError as error:
        raise HaversackError("writing models needs the gguf package: pip install gguf") from error


def _open_writer(
    path: Path, metadata: Mapping[str, Value], tensors: Sequence[TensorPlan], num_splits: int
) -> Any:
    per_part = ceil(len(tensors) / num_splits) if num_splits > 1 else 0
    if per_part and ceil(len(tensors) / per_part) != num_splits:
        raise ValueError(f"{len(tensors)} tensors cannot be split into {num_splits} parts")
    architecture = str(metadata["general.architecture"])
    writer = load_gguf_package().GGUFWriter(path, architecture, split_max_tensors=per_part)
    for key, value in metadata.items():
        if key != "general.architecture":
            _add_value(writer, key, value)
    for plan in tensors:
        num_bytes = plan.num_bytes  # raises for an unknown type before it is looked up
        type_id, no_bytes = BLOCK_TYPES[plan.block_type], np.dtype(np.float32)
        writer.add_tensor_info(plan.name, plan.shape, no_bytes, num_bytes, raw_dtype=type_id)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for file in writer.fout:
        writer.write_padding(file, file.tell())
    return writer


def _add_value(writer: Any, key: str, value: Value) -> None:
    if isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, int):
        writer.add_uint32(key, value)
    elif isinstance(value, float):
        writer.add_float32(key, value)
    elif isinstance(value, str):
        writer.add_string(key, value)
    else:
        writer.add_array(key, value)


def _write_tensor(file: io.BufferedWriter, plan: TensorPlan, chunks: Chunks) -> None:
    written = 0
    for chunk in chunks(plan):
        written += file.write(np.ascontiguousarray(chunk).view(np.uint8).data)
    if written != plan.num_bytes:
        raise ValueError(f"{plan.name} takes {plan.num_bytes} bytes, its pieces have {written}")
