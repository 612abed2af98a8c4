"""Kept files: what a run of a model leaves beside its trunk file for the next run.

The first line is a hash of the file's form, of the trunk file's name, which changes with the
model's file, and of the rest. A damaged file, one of another model, and one of another form have a
wrong hash: they are not used, and the next close overwrites them.
"""

import hashlib
from pathlib import Path

from haversack.devices.storage import write_whole


def read_kept(path: Path, trunk: Path, form: str) -> bytes:
    """Return what was kept at `path` for the model of `trunk`, in this form. Raises ValueError if
    it is not that, FileNotFoundError, OSError."""
    given, _, data = path.read_bytes().partition(b"\n")
    if given != _digest(trunk, form, data):
        raise ValueError("it is damaged or was written for another model")
    return data


def write_kept(path: Path, trunk: Path, form: str, data: bytes) -> None:
    """Keep `data`, whole or not at all. Raises OSError."""
    write_whole(path, _digest(trunk, form, data) + b"\n" + data)


def _digest(trunk: Path, form: str, data: bytes) -> bytes:
    return hashlib.sha256(f"{form} {trunk.stem}\n".encode() + data).hexdigest().encode()
