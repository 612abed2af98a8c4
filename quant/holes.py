"""Holes in a model file: ranges that were never written and read as zeros.

An interrupted download leaves holes if the program reserved the file's room beforehand. The file
has its full length, but the missing weights are zeros, and llama.cpp computes with them.

Some holes are harmless. rsync -S, cp --sparse=always and ZFS turn zeros that were written into
holes, and trained models have such zeros in biases and in rows that fill up a vocabulary, some MB
at most. So a hole of 16 MiB or more is refused, and a smaller one is a warning. Our own trunk files
have larger holes; they are not run as models.
"""

import errno
import os
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from haversack.devices.errors import ModelFileError
from haversack.devices.ggml import GgufHeader
from haversack.devices.units import format_bytes

_LEAST_BYTES = 64 * 1024  # files of any kind have smaller ones
_REFUSED_BYTES = 16 * 1024 * 1024


class Hole(NamedTuple):
    """Bytes `start` to `end` of a file, which begin in the data of `tensor`."""

    path: Path
    start: int
    end: int
    tensor: str

    def __str__(self) -> str:
        return (
            f"{self.path} has a hole of {format_bytes(self.end - self.start)}, bytes {self.start}"
            f" to {self.end}, from {self.tensor} on"
        )


def largest_hole(headers: Iterable[GgufHeader]) -> Hole | None:
    """Return the largest hole of 64 KiB or more in the tensors of these files. Return None if there
    is none, or if the system or the file system does not tell."""
    found = [hole for header in headers for hole in _holes_of(header)]
    return max(found, key=lambda hole: hole.end - hole.start, default=None)


def _holes_of(header: GgufHeader) -> list[Hole]:
    holes: list[Hole] = []
    tensors = [tensor for tensor in header.tensors if tensor.num_bytes]
    for start, end in _unwritten(header.path):
        inside = (t for t in tensors if t.offset < end and start < t.offset + t.num_bytes)
        first = min(inside, key=lambda tensor: tensor.offset, default=None)
        if first is not None and end - max(start, first.offset) >= _LEAST_BYTES:
            holes.append(Hole(header.path, max(start, first.offset), end, first.name))
    return holes


def _unwritten(path: Path) -> list[tuple[int, int]]:
    """(start, end) of every range without data."""
    if not hasattr(os, "SEEK_HOLE"):
        return []
    found: list[tuple[int, int]] = []
    with path.open("rb", buffering=0) as file:
        end = os.fstat(file.fileno()).st_size
        place = 0
        try:
            while place < end and (start := os.lseek(file.fileno(), place, os.SEEK_HOLE)) < end:
                place = _next_data(file.fileno(), start, end)
                found.append((start, place))
        except OSError:  # the file system does not tell
            return []
    return found


def _next_data(file: int, start: int, end: int) -> int:
    """Return where a hole that begins at `start` ends."""
    try:
        return os.lseek(file, start, os.SEEK_DATA)
    except OSError as error:
        if error.errno != errno.ENXIO:
            raise
        return end  # no data follows


def refuse_holes(headers: Iterable[GgufHeader]) -> None:
    """Raise ModelFileError if one of these files has a hole larger than any model has."""
    hole = largest_hole(headers)
    if hole is not None and hole.end - hole.start >= _REFUSED_BYTES:
        raise ModelFileError(
            f"{hole}: a download or a copy that was not finished may leave one, get the file"
            " again; if zeros are meant there, write them with cp --sparse=never"
        )
