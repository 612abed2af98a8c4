"""Forecasts: how fast a plan will decode, before anything is loaded, and how sure that is.

A token takes the time to compute it, and of the time to read its missing experts the part that
computing does not hide. Three laws say what no run has measured yet:

- Of the uses of experts that were used before, `(1 - share) * exp(-a * held ** b)` are misses.
  `share` is the share of all experts that has slots, `held` how many tokens' choices fill them.
  `python -m haversack.tools.routing.hit_law` fits it to recorded routing of four models. A model
  that it was not fitted to misses it by 5 points of a hundred in the mean, by 7 at most.
- Computing hides reads for `_HIDDEN` of the shorter of both. Beside the times of
  `tools/results/*_stream.csv` a token's time is 10 % wrong in the mean.
- A token computes with the trunk and its own experts, at the rate in bytes at which this computer
  computed other models; before the first run, at the rate at which it reads memory.

What the last run of the same model measured corrects all three (see `edge.run_records`).
"""

import contextlib
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from haversack.devices.errors import StorageError
from haversack.devices.memory_speed import memory_bytes_s
from haversack.devices.storage import known_speed, measure_disk
from haversack.edge.cache_dir import default_cache_dir
from haversack.edge.decoding import Decoding
from haversack.edge.model_plan import STREAMED, Plan
from haversack.edge.run_records import LEAST_TOKENS, RunRecord, read_records, record_key
from haversack.offload.pool import PoolPlan

MISS_LAW = (0.502, 0.74)  # a and b above
_HIDDEN = 0.46

MEASURED, LIKELY, ROUGH = "measured", "likely", "rough"
_ERRORS = {MEASURED: 0.15, LIKELY: 0.35, ROUGH: 1.5}  # of a token's time, either way


@dataclass(frozen=True)
class Forecast:
    """How fast tokens will be decoded, one after the other.

    `tok_s` is expected, most likely between `low_tok_s` and `high_tok_s`. A token takes
    `compute_s_per_token` and `wait_s_per_token`; it reads `bytes_read_per_token` from a drive that
    gives `drive_bytes_s` (0 where nothing is read). `confidence` is "measured" (this model ran on
    this computer), "likely" (other models did) or "rough" (none did).
    """

    tok_s: float
    low_tok_s: float
    high_tok_s: float
    compute_s_per_token: float
    wait_s_per_token: float
    bytes_read_per_token: float
    drive_bytes_s: float
    hit_rate: float
    confidence: str

    def to_dict(self) -> dict[str, Any]:
        """Return all figures as plain values."""
        return asdict(self)

    def __str__(self) -> str:
        return f"{shown(self.tok_s)} tok/s ({shown(self.low_tok_s)} to {shown(self.high_tok_s)})"


def shown(tok_s: float) -> str:
    """Return a speed with three digits, as people read it."""
    return f"{tok_s:.0f}" if tok_s >= 100 else f"{tok_s:.3g}"


@dataclass(frozen=True)
class Facts:
    """What is known of the computer and of a model's runs on it. Rates are bytes a second, 0 where
    nothing is known: `drive_bytes_s` of the drive under the model, `weights_bytes_s` of computing
    with other models' weights, `memory_bytes_s` of reading memory."""

    drive_bytes_s: float = 0.0
    weights_bytes_s: float = 0.0
    memory_bytes_s: float = 0.0
    record: RunRecord | None = None


def forecast(planned: Plan, cache_dir: str | Path | None = None) -> Forecast | None:
    """Return how fast the plan will decode, from what is known of this computer and of the model's
    earlier runs; None where that is too little. What is not known is measured, in 2 seconds at
    most: the drive, which is then kept in the cache folder, and the memory."""
    folder = Path(cache_dir or default_cache_dir())
    return forecast_of(planned, known_facts(planned, folder, measure=True))


def known_facts(planned: Plan, cache_dir: Path, *, measure: bool) -> Facts:
    """Return what is known. With `measure`, what is not known is measured: the drive, once, in 1.5
    seconds, and the memory, in a tenth of a second."""
    records = read_records(cache_dir)
    threads = planned.shape.threads
    record = records.get(record_key(planned, cache_dir))
    rates = sorted(each.weights_bytes_s for each in records.values() if each.threads == threads)
    return Facts(
        _drive_bytes_s(planned, cache_dir, measure),
        rates[len(rates) // 2] if rates else 0.0,
        memory_bytes_s(threads) if measure and record is None and not rates else 0.0,
        record,
    )


def _drive_bytes_s(planned: Plan, cache_dir: Path, measure: bool) -> float:
    if planned.mode != STREAMED or not planned.path.is_file():
        return 0.0
    speed = known_speed(planned.path, cache_dir)
    if speed is None and measure:
        with contextlib.suppress(StorageError):  # too small a file, or a full disk
            speed = measure_disk(largest_part(planned), cache_dir=cache_dir)
    return 0.0 if speed is None else speed.bytes_s


def largest_part(planned: Plan) -> Path:
    """Return the largest of the model's files, the best one to measure its drive with."""
    return max(planned.geometry.paths, key=lambda path: path.stat().st_size)


def forecast_of(planned: Plan, facts: Facts) -> Forecast | None:
    """Return the forecast; None where too little is known for any."""
    compute_s, confidence = _compute_s(planned, facts)
    read_bytes, hit_rate = read_bytes_per_token(planned)
    if not compute_s or (read_bytes and not facts.drive_bytes_s):
        return None
    wait_s = 0.0
    if read_bytes:
        read_ratio, wait_ratio = 1.0, 1.0
        if facts.record is not None and facts.record.was_streamed:
            read_ratio, wait_ratio = facts.record.read_ratio, facts.record.wait_ratio
        hit_rate = max(0.0, 1 - read_ratio * (1 - hit_rate))
        read_bytes = min(read_ratio * read_bytes, used_bytes(planned))
        wait_s = wait_ratio * unhidden_s(compute_s, read_bytes / facts.drive_bytes_s)
    if confidence == MEASURED and read_bytes and not (facts.record and facts.record.was_streamed):
        confidence = LIKELY
    token_s, error = compute_s + wait_s, 1 + _ERRORS[confidence]
    tok_s = 1 / token_s
    drive_bytes_s = facts.drive_bytes_s if read_bytes else 0.0
    figures = (tok_s, tok_s / error, tok_s * error, compute_s, wait_s, read_bytes, drive_bytes_s)
    return Forecast(*figures, hit_rate, confidence)


def record_of(planned: Plan, found: Decoding, facts: Facts) -> RunRecord | None:
    """Return what a run of the plan measured, if it was long enough to tell anything. `facts` are
    what was known when it began."""
    if found.tokens < LEAST_TOKENS or found.pass_s <= found.wait_s:
        return None
    compute_s, wait_s = (found.pass_s - found.wait_s) / found.tokens, found.wait_s / found.tokens
    rate_bytes_s, threads = weights_bytes(planned) / compute_s, planned.shape.threads
    law_bytes, _ = read_bytes_per_token(planned)
    if not law_bytes:
        return RunRecord(compute_s, rate_bytes_s, threads, planned.mode == STREAMED)
    read_bytes, wait_ratio = found.bytes_read / found.tokens, 1.0
    if facts.drive_bytes_s and read_bytes:
        wait_ratio = wait_s / unhidden_s(compute_s, read_bytes / facts.drive_bytes_s)
    return RunRecord(compute_s, rate_bytes_s, threads, True, read_bytes / law_bytes, wait_ratio)


def _compute_s(planned: Plan, facts: Facts) -> tuple[float, str]:
    """Return the seconds to compute a token, 0 if nothing is known, and how sure that is."""
    if facts.record is not None:
        return facts.record.compute_s, MEASURED
    if facts.weights_bytes_s:
        return weights_bytes(planned) / facts.weights_bytes_s, LIKELY
    if facts.memory_bytes_s:
        return weights_bytes(planned) / facts.memory_bytes_s, ROUGH
    return 0.0, ROUGH


def unhidden_s(compute_s: float, read_s: float) -> float:
    """Return how long a token waits for `read_s` of reads."""
    return read_s - _HIDDEN * min(compute_s, read_s)


# ----------------------------------------------------------------------- bytes
def used_bytes(planned: Plan) -> int:
    """Return the bytes of the experts that a token uses."""
    used = planned.geometry.num_experts_per_tok
    return used * sum(
        matrix.expert_bytes for layer in planned.geometry.layers for matrix in layer.matrices
    )


def weights_bytes(planned: Plan) -> int:
    """Return the bytes of all weights that a token is computed with."""
    return planned.trunk_bytes + used_bytes(planned)


def read_bytes_per_token(planned: Plan) -> tuple[float, float]:
    """Return what the law says that a token reads, and the hit rate, where experts are
    streamed."""
    if planned.mode != STREAMED:
        return 0.0, 1.0
    used = planned.geometry.num_experts_per_tok
    misses = [len(pool.layers) * used * pool_miss_rate(pool, used) for pool in planned.pools]
    uses = used * sum(len(pool.layers) for pool in planned.pools)
    read_bytes = sum(
        count * sum(pool.shape) for count, pool in zip(misses, planned.pools, strict=True)
    )
    return read_bytes, 1 - sum(misses) / uses


def pool_miss_rate(pool: PoolPlan, num_experts_per_tok: int) -> float:
    """Return what share of the uses of a pool's experts are misses."""
    share = pool.num_slots / (pool.num_experts * len(pool.layers))
    return miss_rate(share, pool.num_slots / (num_experts_per_tok * len(pool.layers)))


def miss_rate(share: float, held: float, law: Sequence[float] = MISS_LAW) -> float:
    """Return the misses of uses of experts that were used before; see above."""
    return max(0.0, 1 - share) * math.exp(-law[0] * held ** law[1])
