"""The n-gram file: the table that drafts come from, kept from one run of a model to the next. It
lies beside the model's trunk file, or where that would lie.

Its first line is a hash of the model's name there, which changes with the model's file, and of the
rest. The rest is the table's memory. A damaged file, one of another model, and one of another form
have a wrong hash: they are not used, and the next close overwrites them.
"""

import hashlib
import logging
from pathlib import Path

import numpy as np
import numpy.typing as npt

from haversack.offload.resident_file import write_whole

_log = logging.getLogger("haversack.ngrams")

_FORMAT = "ngrams 1"
_SUFFIX = ".ngrams"

Table = npt.NDArray[np.uint64]


def read_table(folder: Path, model: str, table_bytes: int) -> Table | None:
    """Return the table of the model called `model`; None without a file. An unusable file is logged
    and gives None."""
    path = folder / (model + _SUFFIX)
    try:
        given, _, data = path.read_bytes().partition(b"\n")
        if given != _digest(model, data) or len(data) != table_bytes:
            raise ValueError("it is damaged or was written for another model")
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        _log.warning("cannot use %s: %s; drafts begin without it", path, error)
        return None
    return np.frombuffer(data, np.uint64).copy()


def save_table(folder: Path, model: str, table: Table) -> None:
    """Save `table` whole or not at all, in place of those of older versions of the model's file. A
    failure is logged. An empty table is not saved."""
    if not table.any():
        return
    path = folder / (model + _SUFFIX)
    data = table.tobytes()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_whole(path, _digest(model, data) + b"\n" + data)
        for other in folder.glob(f"{model.split('-')[0]}-*{_SUFFIX}"):
            if other != path:
                other.unlink(missing_ok=True)
    except OSError as error:
        _log.warning("cannot save what drafts come from to %s: %s", path, error)


def _digest(model: str, data: bytes) -> bytes:
    return hashlib.sha256(f"{_FORMAT} {model}\n".encode() + data).hexdigest().encode()
