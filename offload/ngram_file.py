"""The n-gram file: the table that drafts come from, kept from one run of a model to the next. It
lies beside the model's trunk file, or where that would lie.

Its first line is a hash of the trunk file's name, which changes with the model's file, and of the
rest. The rest is the table's memory. A damaged file, one of another model, and one of another form
have a wrong hash: they are not used, and the next close overwrites them.
"""

import hashlib
import logging
from pathlib import Path

import numpy as np
import numpy.typing as npt

from haversack.offload.resident_file import write_whole
from haversack.quant.trunk import ngrams_path

_log = logging.getLogger("haversack.ngrams")

_FORMAT = "ngrams 1"

Table = npt.NDArray[np.uint64]


def read_table(trunk: Path, table_bytes: int) -> Table | None:
    """Return the table that was saved beside `trunk`, which need not be there; None without one. An
    unusable file is logged and gives None."""
    path = ngrams_path(trunk)
    try:
        given, _, data = path.read_bytes().partition(b"\n")
        if given != _digest(trunk, data) or len(data) != table_bytes:
            raise ValueError("it is damaged or was written for another model")
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        _log.warning("cannot use %s: %s; drafts begin without it", path, error)
        return None
    return np.frombuffer(data, np.uint64).copy()


def save_table(trunk: Path, table: Table) -> None:
    """Save `table` beside `trunk`, whole or not at all, in place of those of older versions of the
    model's file. A failure is logged. An empty table is not saved."""
    if not table.any():
        return
    path, data = ngrams_path(trunk), table.tobytes()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, _digest(trunk, data) + b"\n" + data)
        for other in path.parent.glob(f"{path.name.split('-')[0]}-*{path.suffix}"):
            if other != path:
                other.unlink(missing_ok=True)
    except OSError as error:
        _log.warning("cannot save what drafts come from to %s: %s", path, error)


def _digest(trunk: Path, data: bytes) -> bytes:
    return hashlib.sha256(f"{_FORMAT} {trunk.stem}\n".encode() + data).hexdigest().encode()
