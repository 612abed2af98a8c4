"""The trunk file: a model without its routed experts, in the form llama.cpp loads.

It has the same key-values and tensors as the model. The expert tensors are declared in the smallest
type there is and left as holes, which take no disk. A trunk is built once for each model and kept
in a cache folder as `<model's path, hashed>-<fingerprint>.gguf`. Beside it lie a `.json` for
people, a `.resident`, which says with which experts to start, a `.ngrams` with what drafts come
from (see `offload.ngram_file`), and a `.low` with the low copies of
the experts if they were prepared (see `quant.records`). The file ends with a seal, which shows at
every load whether the file is what was written (see `quant.seal`). One process at a time writes
trunks to the folder: it holds a lock, which the system releases however the process ends, and its
file is named `.gguf.unfinished` until it is whole.
"""

import contextlib
import errno
import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator, Sequence, Set
from dataclasses import dataclass
from pathlib import Path

from haversack.devices.errors import StorageError
from haversack.devices.ggml import GgufHeader, TensorInfo, merged_header
from haversack.devices.storage import write_at
from haversack.devices.system import host
from haversack.devices.units import format_bytes
from haversack.quant.blocks import smallest_type
from haversack.quant.gguf import ExpertMatrix, ModelGeometry, opened_headers
from haversack.quant.seal import SealWriter, is_whole

# Part of the fingerprint, so that another format gets another file.
_FORMAT = "trunk 2, ggml 0.25.3"
# The folder may also hold the user's models: touch no file but those with such names.
_OUR_NAME = re.compile(
    r"[0-9a-f]{12}-[0-9a-f]{20}\."
    r"(gguf|gguf\.unfinished|json|(resident|ngrams|pairs|adapter)(\.\w{8}(\.part)?)?"
    r"|low|importance(\.draft)?)"
)
_CHUNK_BYTES = 8 * 1024 * 1024
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_SPLIT_KEYS = ("split.no", "split.count", "split.tensors.count", "general.alignment")

Progress = Callable[[float], None]


@dataclass(frozen=True)
class TrunkFile:
    """A trunk in the cache: its model, and the disk that it takes with its resident and n-gram
    files."""

    path: Path
    model: str
    disk_bytes: int


def ensure_trunk(
    geometry: ModelGeometry, cache_dir: Path, progress: Progress | None = None
) -> Path:
    """Return the path of the model's trunk in `cache_dir`; write the trunk if it is not there yet.

    The trunk is renamed when it is whole, so that a killed process leaves no half trunk. Of several
    processes one writes and the others wait. Older trunks of the same model are removed. `progress`
    is told the share done, 0 to 1. Raises StorageError if the disk is full or fails.
    """
    path = trunk_path(geometry, cache_dir)
    if not path.is_file():
        with _writing(geometry, cache_dir):
            if not path.is_file():  # no other process wrote it while this one waited
                _write_whole(geometry, path, progress)
    return path


def rewrite_trunk(
    geometry: ModelGeometry, cache_dir: Path, progress: Progress | None = None
) -> Path:
    """Do as `ensure_trunk` for a damaged trunk: write it anew, unless another process has just done
    so."""
    path = trunk_path(geometry, cache_dir)
    with _writing(geometry, cache_dir):
        if not is_whole(path, hole_names(geometry)):
            path.unlink(missing_ok=True)  # the new trunk may need its room
            _write_whole(geometry, path, progress)
    return path


def trunk_path(geometry: ModelGeometry, cache_dir: Path) -> Path:
    """Return where the model's trunk lies in `cache_dir`, or would lie. Raises StorageError if the
    model's file cannot be read."""
    return cache_dir / f"{model_name(geometry)}.gguf"


def hole_names(geometry: ModelGeometry) -> Set[str]:
    """Return the names of the tensors whose data a trunk leaves out."""
    return {matrix.name for matrix in _expert_matrices(geometry)}


def resident_path(trunk: Path) -> Path:
    """Return the path of the file that says which experts of the model of `trunk` lay in slots.
    Until that file is whole, its name ends with eight characters and `.part`."""
    return trunk.with_suffix(".resident")


def ngrams_path(trunk: Path) -> Path:
    """Return the path of the file with what drafts of the model of `trunk` come from; until it is
    whole, its name is longer as that of `resident_path`. Models that need no trunk have one too."""
    return trunk.with_suffix(".ngrams")


def pairs_path(trunk: Path, vocabularies: str) -> Path:
    """Return the path of the file with what was learnt of the vocabularies of the model of `trunk`
    and of its drafter, of which `vocabularies` is a hash."""
    return _beside(trunk, vocabularies, ".pairs")


def adapter_path(trunk: Path, drafter: str) -> Path:
    """Return the path of the file with what a drafter learnt of texts of the model of `trunk`;
    `drafter` names it."""
    return _beside(trunk, drafter, ".adapter")


def _beside(trunk: Path, what: str, suffix: str) -> Path:
    name = hashlib.sha256(f"{trunk.stem} {what}".encode()).hexdigest()
    return trunk.with_name(f"{name[:12]}-{name[12:32]}{suffix}")


def list_trunks(cache_dir: Path) -> list[TrunkFile]:
    """Return all trunks in `cache_dir`, also those being written or left by a killed process."""
    trunks: list[TrunkFile] = []
    for path in our_files(cache_dir):
        with contextlib.suppress(FileNotFoundError):  # renamed or removed a moment ago
            if path.suffix in (".gguf", ".unfinished"):
                disk_bytes = disk_bytes_of(path)
                for beside in (resident_path(path), ngrams_path(path)):
                    with contextlib.suppress(FileNotFoundError):
                        disk_bytes += disk_bytes_of(beside)
                trunks.append(TrunkFile(path, _described_model(path), disk_bytes))
    return trunks


def list_lone_ngrams(cache_dir: Path) -> list[TrunkFile]:
    """Return the n-gram files in `cache_dir` that have no trunk beside them, because their models
    were in memory as a whole, and what was learnt of drafters' vocabularies."""
    names = {".ngrams": "a model without a trunk", ".pairs": "a model and its drafter"}
    return [
        TrunkFile(path, names[path.suffix], disk_bytes_of(path))
        for path in our_files(cache_dir)
        if path.suffix in names and not path.with_suffix(".gguf").is_file()
    ]


def remove_trunks(cache_dir: Path) -> int:
    """Remove every trunk and what lies beside it from `cache_dir`, but not what is being written.
    Return the bytes of disk that this frees. Raises StorageError if the system refuses."""
    freed_bytes = 0
    if not our_files(cache_dir):  # a lock would be left in a folder that is none of ours
        return freed_bytes
    try:
        with _sole_writer(cache_dir, wait=False) as nobody_writes:
            for path in our_files(cache_dir):
                if nobody_writes or path.suffix != ".unfinished":
                    # its process ends just now, or goes on writing it
                    with contextlib.suppress(FileNotFoundError, BlockingIOError), locked(path):
                        disk_bytes = disk_bytes_of(path)
                        path.unlink()
                        freed_bytes += disk_bytes if path.suffix != ".json" else 0
    except OSError as error:
        raise StorageError(f"cannot remove the trunks from {cache_dir}: {error}") from error
    return freed_bytes


# ------------------------------------------------------------------ the folder
@contextlib.contextmanager
def _writing(geometry: ModelGeometry, cache_dir: Path) -> Iterator[None]:
    """Keep all others from writing to the folder inside the block; make it if it is not there. What
    fails inside becomes a StorageError that says what to do."""
    try:
        cache_dir.mkdir(parents=True, exist_ok=True)
        with _sole_writer(cache_dir, wait=True):
            yield
    except StorageError:
        raise
    except OSError as error:
        room = "make room there or " if error.errno in _NO_ROOM else ""
        raise StorageError(
            f"cannot write the trunk ({format_bytes(geometry.trunk_bytes)}) to {cache_dir}:"
            f" {error.strerror or error}; {room}choose another folder with --cache-dir"
        ) from error


@contextlib.contextmanager
def _sole_writer(cache_dir: Path, *, wait: bool) -> Iterator[bool]:
    """Lock the folder inside the block, so that no other process or thread writes to it; yield
    whether that worked. With `wait` it always does."""
    with (cache_dir / "lock").open("w") as file:
        yield host.lock(file.fileno(), wait)


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Lock a file inside the block. Raises BlockingIOError if another process writes it."""
    with path.open("rb") as file:
        if not host.lock(file.fileno(), wait=False):
            raise BlockingIOError(f"{path} is being written")
        yield


def our_files(cache_dir: Path) -> list[Path]:
    """Return the files in `cache_dir` that have names of ours. Raises StorageError if that is no
    folder."""
    if cache_dir.exists() and not cache_dir.is_dir():
        raise StorageError(f"{cache_dir} is a file: give a folder with --cache-dir")
    found = cache_dir.iterdir() if cache_dir.is_dir() else ()
    return sorted(path for path in found if _OUR_NAME.fullmatch(path.name))


def disk_bytes_of(path: Path) -> int:
    """Return the disk that a file takes, without its holes."""
    return host.disk_bytes_of(path)


def _remove_useless(path: Path) -> None:
    """Remove older trunks of the same model than `path`, and what killed processes left."""
    prefix = path.name.split("-")[0]
    for other in our_files(path.parent):
        older = other.name.startswith(prefix) and other.stem != path.stem
        if older or other.suffix == ".unfinished":
            other.unlink(missing_ok=True)


# ------------------------------------------------------------------- identity
def model_name(geometry: ModelGeometry) -> str:
    """Return the name, without its ending, of the files that belong to this version of a model's
    file. Raises StorageError if that cannot be read."""
    path_hash = hashlib.sha256(os.fsencode(geometry.path.resolve())).hexdigest()[:12]
    try:
        return f"{path_hash}-{_fingerprint(geometry)}"
    except OSError as error:
        raise StorageError(f"cannot read {geometry.path}: {error.strerror or error}") from error


def _fingerprint(geometry: ModelGeometry) -> str:
    """Return a digest that changes when the size, the time or the header of any part does."""
    digest = hashlib.sha256(_FORMAT.encode())
    for path in geometry.paths:
        status = path.stat()
        digest.update(os.fsencode(path.resolve()))
        digest.update(f" {status.st_size} {status.st_mtime_ns}".encode())
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
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return "unfinished or unknown"


# -------------------------------------------------------------------- writing
def _write_whole(geometry: ModelGeometry, path: Path, progress: Progress | None) -> None:
    """Write the trunk so that `path` names all of it or does not exist."""
    _remove_useless(path)
    free_bytes = shutil.disk_usage(path.parent).free
    if free_bytes < geometry.trunk_bytes:
        raise OSError(errno.ENOSPC, f"only {format_bytes(free_bytes)} are free there")
    unfinished = path.with_name(f"{path.name}.unfinished")
    try:
        _write(geometry, unfinished, progress)
        os.replace(unfinished, path)
    except BaseException:
        unfinished.unlink(missing_ok=True)
        raise
    _describe(path, geometry)


def _write(geometry: ModelGeometry, target: Path, progress: Progress | None) -> None:
    holes = {m.name: smallest_type(m.row_elements) for m in _expert_matrices(geometry)}
    with opened_headers(geometry.paths) as headers:
        types = {name: hole.type_id for name, hole in holes.items()}
        header, offsets = merged_header(headers, types, _SPLIT_KEYS)
        seal = SealWriter(target.name.split(".")[0], header)
        with target.open("wb") as out:
            write_at(out.fileno(), header, 0)
            copied = 0
            for part, tensor in _filled_tensors(headers, holes.keys()):
                place = out.fileno(), offsets[tensor.name]
                for num_bytes in _copy_tensor(part.path, tensor, place, seal):
                    copied += num_bytes
                    if progress is not None:
                        progress(min(1.0, copied / geometry.trunk_bytes))
            end = _end_of_tensors(geometry, out.fileno(), offsets)
            write_at(out.fileno(), seal.seal(), end)
            os.fsync(out.fileno())


def _expert_matrices(geometry: ModelGeometry) -> list[ExpertMatrix]:
    used = [matrix for layer in geometry.layers for matrix in layer.matrices]
    return [*used, *geometry.unused]


def _filled_tensors(
    headers: Sequence[GgufHeader], holes: Set[str]
) -> Iterator[tuple[GgufHeader, TensorInfo]]:
    """Return the tensors that are no holes, in the trunk's order."""
    for part in headers:
        for tensor in part.tensors:
            if tensor.name not in holes:
                yield part, tensor


def _copy_tensor(
    source: Path, tensor: TensorInfo, place: tuple[int, int], seal: SealWriter
) -> Iterator[int]:
    """Copy a tensor to its `place`, an open file and a position in it; yield the bytes of each
    step."""
    out, position = place
    for data in _pieces(source, tensor):
        write_at(out, data, position)
        position += len(data)
        seal.add(data)
        yield len(data)
    seal.end_tensor()


def _pieces(path: Path, tensor: TensorInfo) -> Iterator[bytes]:
    left = tensor.num_bytes
    try:
        with path.open("rb", buffering=0) as source:
            source.seek(tensor.offset)
            while left and (data := source.read(min(left, _CHUNK_BYTES))):
                left -= len(data)
                yield data
    except OSError as error:
        raise StorageError(f"cannot read {path}: {error.strerror or error}") from error
    if left:
        raise StorageError(f"cannot read {path}: it became {left} bytes shorter")


def _end_of_tensors(geometry: ModelGeometry, out: int, offsets: dict[str, int]) -> int:
    """Return where the last tensor ends, hole or not, rounded up to a boundary of tensors."""
    end = os.fstat(out).st_size
    for matrix in _expert_matrices(geometry):
        row_bytes = smallest_type(matrix.row_elements).row_bytes(matrix.row_elements)
        size_bytes = row_bytes * matrix.num_rows * matrix.num_experts
        end = max(end, offsets[matrix.name] + size_bytes)
    return -(-end // 32) * 32
