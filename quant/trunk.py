"""The trunk file: a model without its routed experts, in the form llama.cpp loads.

Same key-values and tensors; the expert tensors are declared in the smallest type there is and
left as holes, which take no disk. Built once for each model and kept in a cache folder:
`<model's path, hashed>-<fingerprint>.gguf`, with a `.json` beside it for people.
"""

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from haversack.devices.errors import StorageError
from haversack.devices.ggml import GgufHeader, merged_header
from haversack.devices.units import format_bytes
from haversack.quant.blocks import smallest_type
from haversack.quant.gguf import ModelGeometry, open_headers

_FORMAT = "trunk 1, ggml 0.25.3"  # part of the fingerprint: another format, another file
_CHUNK_BYTES = 8 * 1024 * 1024
_SPLIT_KEYS = ("split.no", "split.count", "split.tensors.count", "general.alignment")

Progress = Callable[[float], None]


@dataclass(frozen=True)
class TrunkFile:
    """A trunk in the cache: of which model, and the disk it takes."""

    path: Path
    model: str
    disk_bytes: int


def ensure_trunk(
    geometry: ModelGeometry, cache_dir: Path, progress: Progress | None = None
) -> Path:
    """The path of the model's trunk in `cache_dir`, written now if it is not there yet.

    Written under another name and renamed when whole, so a killed process leaves no half trunk;
    older trunks of the same model go. `progress` is told the share done, 0 to 1. Raises
    StorageError if the disk is full or fails.
    """
    path = cache_dir / f"{_path_hash(geometry)}-{_fingerprint(geometry)}.gguf"
    if path.is_file():
        return path
    try:
        cache_dir.mkdir(parents=True, exist_ok=True)
        _refuse_full_disk(geometry, cache_dir)
        with _renamed_when_whole(path) as unfinished:
            _write(geometry, unfinished, progress)
    except OSError as error:
        raise StorageError(
            f"cannot write the trunk ({format_bytes(geometry.trunk_bytes)}) to {cache_dir}:"
            f" {error}; make room there or choose another folder with --cache-dir"
        ) from error
    _describe(path, geometry)
    _remove_older(path)
    return path


def list_trunks(cache_dir: Path) -> list[TrunkFile]:
    """All trunks in `cache_dir`, and what unfinished ones a killed process left."""
    found = sorted(cache_dir.glob("*.gguf*")) if cache_dir.is_dir() else []
    return [TrunkFile(p, _described_model(p), p.stat().st_blocks * 512) for p in found]


def remove_trunks(cache_dir: Path) -> int:
    """Remove every trunk from `cache_dir`; returns the bytes of disk this frees."""
    trunks = list_trunks(cache_dir)
    for trunk in trunks:
        trunk.path.unlink(missing_ok=True)
        trunk.path.with_suffix(".json").unlink(missing_ok=True)
    return sum(trunk.disk_bytes for trunk in trunks)


# ------------------------------------------------------------------- identity
def _path_hash(geometry: ModelGeometry) -> str:
    return hashlib.sha256(str(geometry.path.resolve()).encode()).hexdigest()[:12]


def _fingerprint(geometry: ModelGeometry) -> str:
    """Changes when any part does: its size, its time, or its header."""
    digest = hashlib.sha256(_FORMAT.encode())
    for path in geometry.paths:
        status = path.stat()
        digest.update(f"{path.resolve()} {status.st_size} {status.st_mtime_ns}".encode())
        with path.open("rb") as file:
            digest.update(file.read(geometry.header_bytes))
    return digest.hexdigest()[:20]


def _describe(path: Path, geometry: ModelGeometry) -> None:
    text = json.dumps({"model": str(geometry.path.resolve()), "trunk_bytes": geometry.trunk_bytes})
    with contextlib.suppress(OSError):  # only for people: a full disk must not fail the load here
        path.with_suffix(".json").write_text(text)


def _described_model(path: Path) -> str:
    try:
        return str(json.loads(path.with_suffix(".json").read_text())["model"])
    except (OSError, ValueError, KeyError):
        return "unfinished or unknown"


def _remove_older(path: Path) -> None:
    prefix = path.name.split("-")[0]
    for older in path.parent.glob(f"{prefix}-*"):
        if older.stem != path.stem:
            older.unlink(missing_ok=True)


# -------------------------------------------------------------------- writing
def _refuse_full_disk(geometry: ModelGeometry, cache_dir: Path) -> None:
    free_bytes = shutil.disk_usage(cache_dir).free
    if free_bytes < geometry.trunk_bytes:
        raise OSError(f"only {format_bytes(free_bytes)} are free there")


@contextlib.contextmanager
def _renamed_when_whole(path: Path) -> Iterator[Path]:
    unfinished = path.with_name(f"{path.name}.{os.getpid()}")
    try:
        yield unfinished
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)


def _write(geometry: ModelGeometry, target: Path, progress: Progress | None) -> None:
    holes = {
        matrix.name: smallest_type(matrix.row_elements)
        for layer in geometry.layers
        for matrix in layer.matrices
    }
    headers = open_headers(geometry.paths)
    try:
        types = {name: hole.type_id for name, hole in holes.items()}
        header, offsets = merged_header(headers, types, _SPLIT_KEYS)
        with target.open("wb") as out:
            out.write(header)
            copied = 0
            for part in headers:
                for num_bytes in _copy_trunk_tensors(part, out.fileno(), offsets, holes.keys()):
                    copied += num_bytes
                    if progress is not None:
                        progress(min(1.0, copied / geometry.trunk_bytes))
            _extend_over_last_hole(geometry, out.fileno(), offsets)
            os.fsync(out.fileno())
    finally:
        for part in headers:
            part.close()


def _copy_trunk_tensors(
    part: GgufHeader, out: int, offsets: dict[str, int], holes: object
) -> Iterator[int]:
    """Copy the tensors of one part that are no holes; yields the bytes of each step."""
    with part.path.open("rb") as source:
        for tensor in part.tensors:
            if tensor.name in holes:  # type: ignore[operator]
                continue
            source.seek(tensor.offset)
            left, position = tensor.num_bytes, offsets[tensor.name]
            while left:
                data = source.read(min(left, _CHUNK_BYTES))
                if not data:
                    raise OSError(f"{part.path} ended {left} bytes early")
                position += _write_all(out, data, position)
                left -= len(data)
                yield len(data)


def _write_all(out: int, data: bytes, position: int) -> int:
    view = memoryview(data)
    while view:
        written = os.pwrite(out, view, position)
        view, position = view[written:], position + written
    return len(data)


def _extend_over_last_hole(geometry: ModelGeometry, out: int, offsets: dict[str, int]) -> None:
    """A file that ends in a hole would look truncated: give it its full length."""
    end = os.fstat(out).st_size
    for layer in geometry.layers:
        for matrix in layer.matrices:
            row_bytes = smallest_type(matrix.row_elements).row_bytes(matrix.row_elements)
            size_bytes = row_bytes * matrix.num_rows * matrix.num_experts
            end = max(end, offsets[matrix.name] + size_bytes)
    os.ftruncate(out, -(-end // 32) * 32)
