"""The n-gram file: the table that drafts come from, kept from one run of a model to the next. It
lies beside the model's trunk file, or where that would lie.

What is kept is the table's memory; `offload/kept_file.py` puts a hash before it.
"""

import logging
from pathlib import Path

import numpy as np
import numpy.typing as npt

from haversack.offload.kept_file import read_kept, write_kept
from haversack.quant.trunk import ngrams_path

_log = logging.getLogger("haversack.ngrams")

_FORM = "ngrams 1"

Table = npt.NDArray[np.uint64]


def read_table(trunk: Path, table_bytes: int) -> Table | None:
    """Return the table that was saved beside `trunk`, which need not be there; None without one. An
    unusable file is logged and gives None."""
    path = ngrams_path(trunk)
    try:
        data = read_kept(path, trunk, _FORM)
        if len(data) != table_bytes:
            raise ValueError(f"it has {len(data)} bytes, the table {table_bytes}")
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
    path = ngrams_path(trunk)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_kept(path, trunk, _FORM, table.tobytes())
        for other in path.parent.glob(f"{path.name.split('-')[0]}-*{path.suffix}"):
            if other != path:
                other.unlink(missing_ok=True)
    except OSError as error:
        _log.warning("cannot save what drafts come from to %s: %s", path, error)
