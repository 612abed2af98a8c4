"""The identity of a model by what its files hold: the same wherever they lie."""

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

from haversack.devices.errors import StorageError
from haversack.quant.gguf import ModelGeometry

_NUM_SAMPLES = 64
_SAMPLE_BYTES = 4096


def content_name(geometry: ModelGeometry) -> str:
    """Return a digest of the headers and lengths of a model's files, and of samples of 4 KiB from
    all over them. Raises StorageError if they cannot be read."""
    digest = hashlib.sha256()
    try:
        for path in geometry.paths:
            for piece in _samples(path, geometry.header_bytes):
                digest.update(piece)
    except OSError as error:
        raise StorageError(f"cannot read {geometry.path}: {error.strerror}") from error
    return digest.hexdigest()[:32]


def _samples(path: Path, header_bytes: int) -> Iterator[bytes]:
    with path.open("rb", buffering=0) as file:
        num_bytes = os.fstat(file.fileno()).st_size
        yield f"{num_bytes} ".encode()
        yield file.read(min(num_bytes, header_bytes))
        for number in range(_NUM_SAMPLES):
            file.seek(num_bytes * number // _NUM_SAMPLES)
            yield file.read(_SAMPLE_BYTES)
