"""The resident file: which experts lay in slots when a model was closed, and how often each expert
was used. It lies beside the model's trunk file and is kept as long.

What is kept is JSON; `offload/kept_file.py` puts a hash before it.
"""

import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from haversack.offload.kept_file import read_kept, write_kept
from haversack.quant.trunk import resident_path

_log = logging.getLogger("haversack.residents")

_FORM = "residents 1"

Expert = tuple[int, int]  # layer, id
Memory = dict[str, npt.NDArray[np.float64]]  # what the eviction rule has counted, by name


@dataclass(frozen=True)
class Residents:
    """The experts worth reading back, the most valuable first, and what the eviction rule of each
    pool has counted."""

    experts: Sequence[Expert]
    memories: Sequence[Memory]


def read_residents(trunk: Path) -> Residents | None:
    """Return what was saved beside `trunk`; None without a file. An unusable file is logged and
    gives None."""
    path = resident_path(trunk)
    try:
        saved = json.loads(read_kept(path, trunk, _FORM))
        experts = [(int(layer), int(expert)) for layer, expert in saved["experts"]]
        memories = [
            {name: np.array(values, np.float64) for name, values in memory.items()}
            for memory in saved["memories"]
        ]
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        _log.warning("cannot use %s: %s; the model starts without it", path, error)
        return None
    return Residents(experts, memories)


def save_residents(trunk: Path, residents: Residents) -> None:
    """Save `residents` beside `trunk`, whole or not at all. A failure is logged. If the trunk is
    gone, nothing is saved, because nothing would use it."""
    if not trunk.is_file():
        return
    memories = [
        {name: values.tolist() for name, values in memory.items()} for memory in residents.memories
    ]
    text = json.dumps({"experts": residents.experts, "memories": memories}).encode()
    path = resident_path(trunk)
    try:
        write_kept(path, trunk, _FORM, text)
    except OSError as error:
        _log.warning("cannot save which experts were used to %s: %s", path, error)
