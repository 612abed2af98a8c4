"""Importance of the columns of experts' matrices: the mean square of what they are multiplied with.

Rounding errors in a column that meets large activations change the product more, so ggml's
quantisers can be told. The numbers come from an imatrix file of llama.cpp, in its GGUF form or in
the older `.dat` form, or they are collected while the model runs on a text.

Axis letters: K columns, E experts, R rows of activations.
"""

import hashlib
import os
import struct
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from haversack.devices.conversion import Floats
from haversack.devices.errors import ModelFileError
from haversack.devices.ggml import F32, GgufHeader
from haversack.quant.gguf import ExpertMatrix

_SUMS, _COUNTS = ".in_sum2", ".counts"
_MOST_NAME_BYTES = 1024
_NUMBER = struct.Struct("<i")
# in a file of sums, beside tensors, whose names are others
_IDENTITY, _NUM_TOKENS, _IS_WHOLE = "identity", "num_tokens", "is_whole"
_ROUTER_WEIGHTS = "router_weights"
_ROWS_KEPT = 32  # of a choice's rows: enough to tell how the scores of experts are distributed


class Importance:
    """The importance of columns by the name of the tensor, (E, K) each."""

    def __init__(self, means: Mapping[str, Floats], source: str) -> None:
        self._means, self.source = means, source

    @property
    def identity(self) -> str:
        """A text that differs where any number differs."""
        digest = hashlib.sha256()
        for name, means in sorted(self._means.items()):
            digest.update(name.encode() + means.tobytes())
        return digest.hexdigest()[:20]

    def of(self, matrix: ExpertMatrix, expert: int) -> Floats | None:
        """Return the importance of the columns (K,) of an expert's matrix. An expert that the text
        never used has the mean of the others. Return None if nothing is known of the matrix."""
        means = self._means.get(matrix.name)
        if means is None or not means.any():
            return None
        means = means.reshape(matrix.num_experts, matrix.row_elements)
        used = means[[expert]] if means[expert].any() else means[means.any(axis=1)]
        mean: Floats = used.mean(axis=0, dtype=np.float32)
        return mean

    def check(self, matrix: ExpertMatrix) -> None:
        """Raise ModelFileError if the numbers for `matrix` do not fit it."""
        means, shape = self._means.get(matrix.name), (matrix.num_experts, matrix.row_elements)
        if means is not None and means.size != shape[0] * shape[1]:
            raise ModelFileError(
                f"{self.source} has {means.size} numbers for {matrix.name}, which has"
                f" {shape[0]} experts of {shape[1]} columns: it is another model's"
            )

    @classmethod
    def read(cls, path: Path) -> "Importance":
        """Read an imatrix file of llama.cpp. Raises ModelFileError if it is none."""
        try:
            with path.open("rb") as file:
                is_gguf = file.read(4) == b"GGUF"
            found = dict(_gguf_means(path) if is_gguf else _old_means(path.read_bytes()))
        except (OSError, ValueError, struct.error) as error:
            if isinstance(error, ModelFileError):
                raise
            raise ModelFileError(
                f"{path} is no imatrix file: {_reason(error)}; give one that llama.cpp's imatrix"
                " wrote"
            ) from error
        wrong = [name for name, means in found.items() if not _is_plausible(means)]
        if wrong or not found:
            what = f"the numbers of {wrong[0]} are not finite" if wrong else "it names no tensors"
            raise ModelFileError(f"{path} is no usable imatrix file: {what}; make or get it again")
        return cls(found, f"the imatrix {path}")


def _reason(error: Exception) -> str:
    """Return why a file is no imatrix, in words that tell more than those of `struct`."""
    if isinstance(error, struct.error | UnicodeDecodeError):
        return "it does not hold names with their numbers"
    return getattr(error, "strerror", None) or str(error)


def _is_plausible(means: Floats) -> bool:
    return bool(np.isfinite(means).all() and (means >= 0).all())


def _gguf_means(path: Path) -> Iterator[tuple[str, Floats]]:
    with GgufHeader(path) as header:
        tensors = {tensor.name: tensor for tensor in header.tensors if tensor.type_id == F32}
        for name, tensor in tensors.items():
            counts = tensors.get(name.removesuffix(_SUMS) + _COUNTS)
            if name.endswith(_SUMS) and counts is not None:
                shape = tensor.shape[1], tensor.shape[0]
                read = [
                    np.fromfile(path, np.float32, each.num_bytes // 4, offset=each.offset)
                    for each in (tensor, counts)
                ]
                divisors = np.maximum(read[1].reshape(-1, 1), np.float32(1))
                means = (read[0].reshape(shape) / divisors).astype(np.float32)
                yield name.removesuffix(_SUMS), means


def _old_means(data: bytes) -> Iterator[tuple[str, Floats]]:
    """Read the form before GGUF: the number of entries, then of each the length of its name, the
    name, the number of calls, the number of values, and the values: means times calls."""
    place = 0

    def number() -> int:
        nonlocal place
        place += _NUMBER.size
        return int(_NUMBER.unpack_from(data, place - _NUMBER.size)[0])

    for _ in range(number()):
        length = number()
        if not 0 < length <= _MOST_NAME_BYTES:
            raise ValueError(f"a name of {length} bytes")
        name = data[place : place + length].decode()
        place += length
        num_calls, num_values = number(), number()
        if num_values < 1 or place + 4 * num_values > len(data):
            raise ValueError(f"{name} has {num_values} values, more than the file")
        values = np.frombuffer(data, np.float32, num_values, place)
        place += 4 * num_values
        means: Floats = values / np.float32(max(num_calls, 1))
        yield name, means


class ActivationSums:
    """Collects the importance while a model runs: sums of squares by tensor and expert, and a
    sample of the routers' weights, in a file that an interrupted run goes on from. `identity` names
    the model and the text, of which `num_tokens` were counted; `is_whole` says whether these are
    all."""

    def __init__(self, path: Path, identity: str) -> None:
        self._path, self._identity = path, identity
        self.num_tokens, self.is_whole = 0, False
        self._sums: dict[str, Floats] = {}
        self._counts: dict[str, npt.NDArray[np.int64]] = {}
        self._weights: list[Floats] = []
        self._read()

    def add(self, name: str, num_experts: int, experts: npt.NDArray[np.int32], x: Floats) -> None:
        """Add activations (R, K): row r is multiplied with the matrices of `experts[r]` (R, N)."""
        sums = self._sums.setdefault(name, np.zeros((num_experts, x.shape[1]), np.float32))
        counts = self._counts.setdefault(name, np.zeros(num_experts, np.int64))
        uses = np.zeros((num_experts, len(x)), np.float32)
        np.add.at(uses, (experts, np.arange(len(x))[:, None]), 1)
        np.add(sums, uses @ np.square(x), out=sums)
        counts += uses.sum(axis=1).astype(np.int64)

    def add_weights(self, weights: Floats) -> None:
        """Add a sample of a router's weights (R, N) of the experts that it chose for R rows."""
        self._weights.append(weights[:: -(-len(weights) // _ROWS_KEPT)].copy())

    def importance(self) -> Importance:
        """Return the means of what was added."""
        means = {
            name: sums / np.maximum(self._counts[name], 1).astype(np.float32)[:, None]
            for name, sums in self._sums.items()
        }
        return Importance(means, f"{self.num_tokens} tokens of text")

    def save(self) -> None:
        """Write the file anew. Raises OSError."""
        arrays: dict[str, npt.NDArray[Any]] = {
            f"{name}{_SUMS}": sums for name, sums in self._sums.items()
        }
        arrays |= {f"{name}{_COUNTS}": counts for name, counts in self._counts.items()}
        arrays |= {_NUM_TOKENS: np.array(self.num_tokens), _IS_WHOLE: np.array(self.is_whole)}
        if self._weights:
            arrays[_ROUTER_WEIGHTS] = np.concatenate(self._weights)
        draft = self._path.with_name(f"{self._path.name}.draft")
        with draft.open("wb") as file:
            np.savez(file, allow_pickle=False, identity=np.array(self._identity), **arrays)
        os.replace(draft, self._path)

    def _read(self) -> None:
        """Go on from the file, if it is whole and of the same model and text."""
        arrays = _saved(self._path)
        if arrays is None or str(arrays[_IDENTITY]) != self._identity:
            return
        if _ROUTER_WEIGHTS in arrays:
            self._weights = [arrays[_ROUTER_WEIGHTS]]
        self.num_tokens, self.is_whole = int(arrays[_NUM_TOKENS]), bool(arrays[_IS_WHOLE])
        named = [name.removesuffix(_SUMS) for name in arrays if name.endswith(_SUMS)]
        self._sums = {name: arrays[name + _SUMS] for name in named}
        self._counts = {name: arrays[name + _COUNTS] for name in named}


def read_router_weights(path: Path) -> Floats | None:
    """Return the sample (R, N) of routers' weights that `ActivationSums` wrote to the file at
    `path`, when it had counted its whole text; None if there is none."""
    arrays = _saved(path, {_IS_WHOLE, _ROUTER_WEIGHTS})
    return None if arrays is None or not arrays[_IS_WHOLE] else arrays.get(_ROUTER_WEIGHTS)


def _saved(path: Path, names: set[str] | None = None) -> dict[str, npt.NDArray[Any]] | None:
    """Return the arrays called `names`, or all, in a file of sums; None if it is not there or
    damaged."""
    try:
        with np.load(path) as saved:
            if not {_IDENTITY, _NUM_TOKENS, _IS_WHOLE} <= set(saved.files):
                return None
            return {name: saved[name] for name in saved.files if names is None or name in names}
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None
