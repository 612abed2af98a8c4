"""KV files: the keys and values of a text's tokens, kept on disk.

A file is a line of JSON, the tokens as 32-bit integers, what `devices.kv_state` gives, and a
checksum of all that. The line says what decided the bits: keys and values that another model,
another block type or another number of threads computed are not used.

The bytes are mapped and not read, so that they take no anonymous memory.
"""

import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from haversack.devices.checksum import DIGEST_BYTES, Checksum
from haversack.devices.errors import StorageError
from haversack.devices.storage import whole_file

VERSION = 1
_SEED = b"haversack kv"
_PIECE_BYTES = 1 << 20
_MOST_HEADER_BYTES = 1 << 20
_TOKEN = np.dtype("<i4")

Bytes = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class KvAbout:
    """What a KV file says of itself: what decided its bits, by name, the tokens, and where batches
    of them ended."""

    bits: Mapping[str, str]
    tokens: Sequence[int]
    batch_ends: Sequence[int]

    def difference(self, bits: Mapping[str, str]) -> str:
        """Return in words what decided its bits and is another now; nothing if all is the same."""
        for name in {**self.bits, **bits}:
            then, now = (which.get(name, "not given") for which in (self.bits, bits))
            if then != now:
                return f"its {name} is {then}, and {now} now"
        return ""


def write_kv(path: Path, about: KvAbout, state_bytes: int, fill: Callable[[Bytes], None]) -> None:
    """Write a KV file whose `state_bytes` are what `fill` puts there. An older file at `path` is
    replaced only once the new one is whole and on the disk. Raises StorageError."""
    try:
        with whole_file(path, synced=True) as file:
            _write(file, about, state_bytes, fill)
    except StorageError:
        raise
    except OSError as error:
        raise StorageError(
            f"cannot keep the KV cache in {path}: {error.strerror}: make room or give another place"
        ) from error


def _write(file: BinaryIO, about: KvAbout, state_bytes: int, fill: Callable[[Bytes], None]) -> None:
    tokens = np.asarray(about.tokens, _TOKEN).tobytes()
    header = {
        "haversack_kv": VERSION,
        "bits": dict(about.bits),
        "tokens": len(about.tokens),
        "batch_ends": list(about.batch_ends),
        "state_bytes": state_bytes,
    }
    file.write(json.dumps(header).encode() + b"\n" + tokens)
    state_at = file.tell()
    # The disk must have the room before the memory is mapped: a full disk would end the process.
    for done in range(0, state_bytes, _PIECE_BYTES):
        file.write(bytes(min(_PIECE_BYTES, state_bytes - done)))
    file.flush()
    fill(np.memmap(file, np.uint8, "r+", state_at, (state_bytes,)))
    file.seek(0, os.SEEK_END)
    file.write(_digest(file, file.tell()))
    file.flush()


def read_about(path: Path) -> KvAbout:
    """Return what the file at `path` says of itself. Raises StorageError for one that is damaged,
    is no KV file or cannot be read."""
    with _opened(path) as file:
        return _header_of(file, path)[0]


@contextmanager
def _opened(path: Path) -> Iterator[BinaryIO]:
    """Give the open file; raises StorageError where reading fails inside the block."""
    try:
        with path.open("rb") as file:
            yield file
    except StorageError:
        raise
    except OSError as error:
        raise StorageError(f"cannot read the KV cache {path}: {error.strerror}") from error


def _header_of(file: BinaryIO, path: Path) -> tuple[KvAbout, int, int]:
    """Return what the file says of itself, where the state begins and how long it is."""
    try:
        header: Any = json.loads(file.readline(_MOST_HEADER_BYTES))
        if header["haversack_kv"] != VERSION:
            raise ValueError(f"its version is {header['haversack_kv']!r}, not {VERSION}")
        num_tokens, state_bytes = int(header["tokens"]), int(header["state_bytes"])
        state_at = file.tell() + num_tokens * _TOKEN.itemsize
        if os.fstat(file.fileno()).st_size != state_at + state_bytes + DIGEST_BYTES:
            raise ValueError("its length is wrong")
        tokens = np.frombuffer(file.read(state_at - file.tell()), _TOKEN)
        bits = {str(name): str(value) for name, value in header["bits"].items()}
        ends = [int(end) for end in header["batch_ends"]]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise StorageError(f"{path} is damaged or holds no KV cache: {error}") from error
    return KvAbout(bits, tokens.tolist(), ends), state_at, state_bytes


@contextmanager
def opened_kv(path: Path) -> Iterator[tuple[KvAbout, Bytes]]:
    """Yield what the file at `path` says of itself, and its state, valid inside the block. Raises
    StorageError as `read_about`, and for a wrong checksum."""
    with _opened(path) as file:
        about, state_at, state_bytes = _header_of(file, path)
        _check(file, path, state_at + state_bytes)
        yield about, np.memmap(file, np.uint8, "c", state_at, (state_bytes,))


def _check(file: BinaryIO, path: Path, num_bytes: int) -> None:
    file.seek(num_bytes)
    if file.read(DIGEST_BYTES) != _digest(file, num_bytes):
        raise StorageError(f"{path} is damaged: its checksum is wrong")


def _digest(file: BinaryIO, num_bytes: int) -> bytes:
    checksum = Checksum(_SEED)
    checksum.add_file(file, 0, num_bytes)
    return checksum.digest()
