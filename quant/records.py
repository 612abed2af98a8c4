"""The file of low copies that were made on this computer: one record for each expert.

    where                       what
    0                           "haversack low 1\\n", then the length of the layout, 8 bytes
    24                          the layout as JSON, then its checksum, 8 bytes
    next page                   a checksum of each record, 8 bytes: by slice, layer and expert
    next page                   the records: by layer, then by slice, then by expert

A record holds the matrices of one expert; each begins at a page. A file has one slice, or two where
a copy is nested: the low copy and its rest. A checksum is written after its record, and is 0 while
there is none. So a file is usable at every moment, whenever its writer was killed, and a record
that turns out to be damaged is given up by setting its checksum to 0.
"""

import contextlib
import json
import os
import struct
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from haversack.devices.checksum import DIGEST_BYTES, Checksum
from haversack.devices.errors import StorageError
from haversack.devices.memory import PAGE_BYTES
from haversack.devices.storage import write_at
from haversack.devices.system import host
from haversack.quant.experts import Blocks
from haversack.quant.gguf import ExpertCopy, ModelGeometry
from haversack.quant.trunk import disk_bytes_of, model_name, our_files

_MAGIC = b"haversack low 1\n"
_LENGTH = struct.Struct("<Q")
_MOST_LAYOUT_BYTES = 64 * 1024 * 1024
_SUFFIX = ".low"


class Record(NamedTuple):
    """Names a record: its slice, the index of its layer among those with experts, its expert."""

    slice_idx: int
    layer_idx: int
    expert: int


def digest(record: Record, matrices: Sequence[Blocks]) -> int:
    """Return the checksum of a record with these matrices, in their order; never 0."""
    checksum = Checksum(struct.pack("<III", *record))
    for matrix in matrices:
        checksum.add_memory(matrix.__array_interface__["data"][0], matrix.nbytes)
    return int.from_bytes(checksum.digest(), "little") or 1


class Stored(NamedTuple):
    """A matrix in a record: its block type and its bytes, 0 if it is not there."""

    type_id: int
    num_bytes: int

    @property
    def room_bytes(self) -> int:
        return _whole_pages(self.num_bytes)


@dataclass(frozen=True)
class Layout:
    """What a file of records holds. `source` tells people and `identity` tells the program what the
    copies were made from; `matrices` are by slice, layer and matrix."""

    model: str
    source: str
    identity: str
    num_experts: tuple[int, ...]
    matrices: tuple[tuple[tuple[Stored, ...], ...], ...]

    def to_bytes(self) -> bytes:
        """Return the file's bytes before the checksums."""
        text = json.dumps(asdict(self)).encode()
        begin = _MAGIC + _LENGTH.pack(len(text)) + text
        checksum = Checksum(b"layout")
        checksum.add(begin)
        return begin + checksum.digest()

    @classmethod
    def read(cls, path: Path) -> "Layout":
        """Return the layout of a file. Raises StorageError if it cannot be read or is damaged."""
        try:
            with path.open("rb") as file:
                begin = file.read(len(_MAGIC) + _LENGTH.size)
                length = _LENGTH.unpack(begin[len(_MAGIC) :])[0] if len(begin) == 24 else 0
                text = file.read(min(length, _MOST_LAYOUT_BYTES))
                checksum = Checksum(b"layout")
                checksum.add(begin + text)
                if not begin.startswith(_MAGIC) or file.read(DIGEST_BYTES) != checksum.digest():
                    raise StorageError(f"{path} is damaged: its layout was changed or cut")
        except OSError as error:
            if isinstance(error, StorageError):
                raise
            raise StorageError(f"cannot read {path}: {error.strerror}") from error
        fields = json.loads(text)
        matrices = tuple(
            tuple(tuple(Stored(*matrix) for matrix in layer) for layer in each)
            for each in fields.pop("matrices")
        )
        return cls(num_experts=tuple(fields.pop("num_experts")), matrices=matrices, **fields)

    @cached_property
    def table_offset(self) -> int:
        return _whole_pages(len(self.to_bytes()))

    @property
    def table_shape(self) -> tuple[int, int, int]:
        return len(self.matrices), len(self.num_experts), max(self.num_experts)

    @cached_property
    def _areas(self) -> dict[tuple[int, int], int]:
        """Where the records of a slice and layer begin."""
        end = self.table_offset + _whole_pages(DIGEST_BYTES * int(np.prod(self.table_shape)))
        found: dict[tuple[int, int], int] = {}
        for layer_idx, count in enumerate(self.num_experts):
            for slice_idx in range(len(self.matrices)):
                found[slice_idx, layer_idx] = end
                end += count * self.record_bytes(slice_idx, layer_idx)
        return found

    @property
    def num_bytes(self) -> int:
        """The length of the whole file."""
        last = len(self.matrices) - 1, len(self.num_experts) - 1
        return self._areas[last] + self.num_experts[-1] * self.record_bytes(*last)

    def record_bytes(self, slice_idx: int, layer_idx: int) -> int:
        """Return the room of a record: whole pages."""
        return sum(stored.room_bytes for stored in self.matrices[slice_idx][layer_idx])

    def records(self) -> Iterator[Record]:
        """Return all records in the order in which they are made: all slices of an expert, then the
        next expert."""
        for layer_idx, count in enumerate(self.num_experts):
            for expert in range(count):
                for slice_idx in range(len(self.matrices)):
                    yield Record(slice_idx, layer_idx, expert)

    def copies(self, slice_idx: int, layer_idx: int, part: int) -> list[ExpertCopy | None]:
        """Return where a layer's matrices lie if this file is numbered `part`, None for one that
        is not in it."""
        stride_bytes = self.record_bytes(slice_idx, layer_idx)
        offset, found = self._areas[slice_idx, layer_idx], list[ExpertCopy | None]()
        for stored in self.matrices[slice_idx][layer_idx]:
            place = stored.type_id, part, offset, stored.num_bytes, stride_bytes
            found.append(ExpertCopy(1, *place) if stored.num_bytes else None)
            offset += stored.room_bytes
        return found


class RecordFile:
    """A file of records, opened by its only writer. Threads may write records at the same time.

    Raises StorageError if another process writes it, or it cannot be opened or made.
    """

    def __init__(self, path: Path, layout: Layout) -> None:
        """Open the file at `path` if it has this layout; else replace it by an empty one."""
        self.path, self.layout = path, layout
        self._file = _open_locked(path, layout)
        self.digests = _read_digests(self._file, layout)

    def missing(self) -> list[Record]:
        """Return the records that are not there."""
        return [record for record in self.layout.records() if not self.digests[record]]

    def write(self, record: Record, matrices: Sequence[Blocks]) -> None:
        """Write a record; `matrices` has one for each that the layout stores. Raises OSError."""
        copies = self._copies(record)
        for copy, matrix in zip(copies, matrices, strict=True):
            assert matrix.nbytes == copy.num_bytes, "as the layout says"
            write_at(self._file, matrix.data.cast("B"), copy.place(record.expert))
        self._put_digest(record, digest(record, matrices))

    def read(self, record: Record) -> list[Blocks]:
        """Return a record's matrices as they lie in the file, damaged or not."""
        found: list[Blocks] = []
        for copy in self._copies(record):
            data = host.read_bytes(self._file, copy.num_bytes, copy.place(record.expert))
            found.append(np.frombuffer(data, np.uint8))
        return found

    def drop_damaged(self) -> Iterator[tuple[Record, bool]]:
        """Read every record that is there and yield it with whether it is as it was written. One
        that is not counts as missing from then on."""
        for record in [each for each in self.layout.records() if self.digests[each]]:
            whole = digest(record, self.read(record)) == int(self.digests[record])
            if not whole:
                self._put_digest(record, 0)
            yield record, whole

    def sync(self) -> None:
        """Return once everything is on the drive."""
        os.fsync(self._file)

    def close(self) -> None:
        os.close(self._file)

    def __enter__(self) -> "RecordFile":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _copies(self, record: Record) -> list[ExpertCopy]:
        found = self.layout.copies(record.slice_idx, record.layer_idx, 0)
        return [copy for copy in found if copy is not None]

    def _put_digest(self, record: Record, value: int) -> None:
        _put_digest(self._file, self.layout, record, value)
        self.digests[record] = value


# ------------------------------------------------------------------- the folder
def low_path(geometry: ModelGeometry, cache_dir: Path) -> Path:
    """Return the path of a model's file of records. Another version of the model's file has
    another."""
    return cache_dir / (model_name(geometry) + _SUFFIX)


def read_records(path: Path) -> tuple[Layout, npt.NDArray[np.uint64]]:
    """Return the layout and the checksums of a file of records. Raises StorageError."""
    layout = Layout.read(path)
    try:
        with path.open("rb", buffering=0) as file:
            if os.fstat(file.fileno()).st_size < layout.num_bytes:
                raise StorageError("it was cut")
            return layout, _read_digests(file.fileno(), layout)
    except OSError as error:
        raise StorageError(f"cannot read {path}: {error.strerror or error}") from error


@dataclass(frozen=True)
class LowFile:
    """A file of records in the cache: its model, what its copies were made from, the share of them
    that is there, and its disk with that of the collected importance beside it."""

    path: Path
    model: str
    source: str
    share: float
    disk_bytes: int


def list_low_files(cache_dir: Path) -> list[LowFile]:
    """Return all files of records in `cache_dir`, also those that are not finished or damaged."""
    found: list[LowFile] = []
    for path in our_files(cache_dir):
        with contextlib.suppress(FileNotFoundError):  # removed a moment ago
            if path.suffix == _SUFFIX:
                disk_bytes = disk_bytes_of(path)
                with contextlib.suppress(FileNotFoundError):
                    disk_bytes += disk_bytes_of(importance_path(path))
                found.append(_described(path, disk_bytes))
    return found


def _described(path: Path, disk_bytes: int) -> LowFile:
    try:
        layout, digests = read_records(path)
    except StorageError:
        return LowFile(path, "unknown", "damaged", 0.0, disk_bytes)
    num_records = len(layout.matrices) * sum(layout.num_experts)
    share = float(np.count_nonzero(digests)) / num_records
    return LowFile(path, layout.model, layout.source, share, disk_bytes)


def importance_path(low: Path) -> Path:
    """Return the path of the importance that was collected for the low copies at `low`."""
    return low.with_suffix(".importance")


def remove_older(low: Path) -> None:
    """Remove the low copies of older versions of the model that `low` belongs to."""
    prefix = low.name.split("-")[0]
    for other in our_files(low.parent):
        older = other.name.startswith(prefix) and other.stem != low.stem
        if older and other.suffix in (_SUFFIX, importance_path(low).suffix):
            other.unlink(missing_ok=True)


def give_up_records(path: Path, records: Sequence[Record]) -> None:
    """Note in the file at `path` that records are damaged, so that their experts are read from the
    model's file from now on. What cannot be noted is found again at the next read."""
    with contextlib.suppress(OSError):
        layout = Layout.read(path)
        file = os.open(path, os.O_RDWR | host.OPEN_FLAGS)
        try:
            for record in records:
                _put_digest(file, layout, record, 0)
        finally:
            os.close(file)


def _open_locked(path: Path, layout: Layout) -> int:
    """Open the file for writing, as the only writer; make it if it is not there or has another
    layout."""
    wanted = layout.to_bytes()
    while True:
        file = os.open(path, os.O_RDWR | os.O_CREAT | host.OPEN_FLAGS, 0o644)
        try:
            _lock(file, path)
            if host.read_bytes(file, len(wanted), 0) == wanted:
                os.truncate(file, layout.num_bytes)  # one that was cut gets its length again
                return file
            if os.fstat(file).st_size == 0:
                os.truncate(file, layout.num_bytes)
                write_at(file, wanted, 0)
                return file
            path.unlink()  # others may read the old file, so it must not change
        except BaseException:
            os.close(file)
            raise
        os.close(file)


def _lock(file: int, path: Path) -> None:
    if not host.lock(file, wait=False):
        raise StorageError(
            f"another process prepares low copies in {path}: wait until it has ended"
        )


def _read_digests(file: int, layout: Layout) -> npt.NDArray[np.uint64]:
    num_bytes = DIGEST_BYTES * int(np.prod(layout.table_shape))
    data = host.read_bytes(file, num_bytes, layout.table_offset)
    return np.frombuffer(data, "<u8").reshape(layout.table_shape).astype(np.uint64)


def _put_digest(file: int, layout: Layout, record: Record, value: int) -> None:
    place = int(np.ravel_multi_index(record, layout.table_shape))
    data = value.to_bytes(DIGEST_BYTES, "little")
    write_at(file, data, layout.table_offset + DIGEST_BYTES * place)


def _whole_pages(num_bytes: int) -> int:
    return -(-num_bytes // PAGE_BYTES) * PAGE_BYTES
