"""What runs of models measured on this computer, kept in one file of the cache folder.

Forecasts of later runs are corrected by it (see `edge.forecast`). A file that cannot be read counts
as none, because all that is lost is how sure a forecast is.
"""

import json
import math
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from haversack.devices.errors import StorageError
from haversack.devices.storage import write_whole
from haversack.edge.model_plan import Plan
from haversack.quant.trunk import trunk_path

LEAST_TOKENS = 32  # decoded by a run that is kept
_MOST_RECORDS = 64


@dataclass(frozen=True)
class RunRecord:
    """What decoding took in the last run of a model. `compute_s` is the time of a token without
    waits for reads, `weights_bytes_s` the rate at which weights were computed with `threads`. The
    bytes read, and the time waited for them, were `read_ratio` and `wait_ratio` of what the laws
    say; both are 1 for a run that streamed nothing. `prompt_bytes_s` is the rate at which weights
    were computed with for each token of its prompts, 0 if they were too short to tell. `on_devices`
    says that devices computed a part, `device_shares` which share of the uses of experts each of
    them did, by name."""

    compute_s: float
    weights_bytes_s: float
    threads: int
    was_streamed: bool
    read_ratio: float = 1.0
    wait_ratio: float = 1.0
    prompt_bytes_s: float = 0.0
    on_devices: bool = False
    device_shares: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        positive = (self.compute_s, self.weights_bytes_s, self.threads)
        ratios = (self.read_ratio, self.wait_ratio, self.prompt_bytes_s)
        if not all(0 < num < math.inf for num in positive) or not all(
            0 <= num < math.inf for num in (*ratios, *self.device_shares.values())
        ):
            raise ValueError(f"nothing that a run measures: {self}")


def record_key(planned: Plan, cache_dir: Path) -> str:
    """Return the name of a model's runs: of this version of its file, computed in this way. Empty
    if the file cannot be read."""
    with suppress(StorageError):
        stem = trunk_path(planned.geometry, cache_dir).stem
        slots = [f" {each.held}" for each in planned.devices if each.is_used]
        return f"{stem} {planned.fidelity} {planned.shape.threads}{''.join(slots)}"
    return ""


def read_records(cache_dir: Path) -> dict[str, RunRecord]:
    """Return all records by their keys, the oldest first."""
    try:
        found: Any = json.loads(_path(cache_dir).read_text(encoding="utf-8"))
        return {str(key): RunRecord(**values) for key, values in found.items()}
    except (OSError, ValueError, TypeError, AttributeError, RecursionError):
        return {}


def keep_record(cache_dir: Path, key: str, record: RunRecord) -> None:
    """Keep the record in place of an older one. Raises OSError."""
    records = {name: each for name, each in read_records(cache_dir).items() if name != key}
    newest = [*records.items(), (key, record)][-_MOST_RECORDS:]
    cache_dir.mkdir(parents=True, exist_ok=True)
    text = json.dumps({name: asdict(each) for name, each in newest}, indent=1)
    write_whole(_path(cache_dir), text.encode())


def _path(cache_dir: Path) -> Path:
    return cache_dir / "runs.json"
