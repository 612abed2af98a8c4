"""Measuring how fast a model runs in its budget, and how near that is to what the computer allows.

A measurement computes one prompt of random tokens, then tokens one at a time.
"""

import hashlib
import random
import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from haversack.devices.errors import PromptError
from haversack.devices.storage import measure_disk
from haversack.edge.forecasting import largest_part
from haversack.edge.model import Model
from haversack.edge.model_plan import STREAMED, Plan
from haversack.edge.replay import Replay, Trace
from haversack.edge.stats import Stats


@dataclass(frozen=True)
class Work:
    """The work of an engine: compute the first `prompt_tokens` of `tokens` in one batch, then the
    others one at a time. The first `warm_tokens` of these are not timed, because slots or page
    cache fill meanwhile. `trace` is the file of a routing to force upon the model."""

    tokens: Sequence[int]
    prompt_tokens: int
    warm_tokens: int
    trace: Path | None = None


@dataclass(frozen=True)
class Decoded:
    """What work took: counts of the prompt and of all timed tokens, `tokens_s` seconds of each
    timed token, and the `logits` (vocabulary,) after the last one."""

    prompt: Stats
    timed: Stats
    tokens_s: npt.NDArray[np.float64]
    logits: npt.NDArray[np.float32]


@dataclass(frozen=True)
class BenchResult:
    """What one measurement found. `decode_...`, the counts and what is said per token are of the
    timed tokens alone, `prefill_...` of the prompt. `mode` is the plan's. `trace_steps` is the
    length of the recorded routing that was forced (repeated where it is shorter than the work), 0
    if none was.

    A token's seconds have three parts: `compute_s_per_token` for llama.cpp's graph and the experts'
    products, `own_s_per_token` for our own code, and `wait_s_per_token` for waiting for reads.
    `bound_s_per_token` is the larger of the time to compute a token and the time to read its bytes
    at `device_bytes_s`, the rate that the drive gave just before. `ratio_to_bound` is 1 where one
    of the two hides all else. `prefill_bound_s` is the same for the prompt. `disk_bytes_s` is the
    rate reached.

    `prefetch_precision` is the share of the `prefetched` experts that were then chosen.
    `prefetch_recall` is the share of experts prefetched of those that could have been (see
    `Stats`). `prefetching` says whether the engine prefetched at the end. `logits_sha256` is a
    digest of the logits after the last token; equal digests say that two runs computed the same.
    """

    mode: str
    trace_steps: int
    prompt_tokens: int
    warm_tokens: int
    decode_tokens: int
    prefill_s: float
    prefill_tok_s: float
    prefill_bytes_read: int
    prefill_bound_s: float
    decode_s: float
    decode_tok_s: float
    decode_s_per_token: float
    compute_s_per_token: float
    own_s_per_token: float
    wait_s_per_token: float
    bound_s_per_token: float
    ratio_to_bound: float
    bytes_read_per_token: float
    disk_bytes_s: float
    device_bytes_s: float
    hits: int
    misses: int
    hit_rate: float
    uses_high: int
    uses_low: int
    uses_skipped: int
    uses_leaned: int
    upgraded: int
    saved_bytes: int
    device_hits: int
    device_promoted: int
    device_moved_bytes: int
    prefetched: int
    prefetch_precision: float
    prefetch_recall: float
    prefetching: bool
    ram_budget_bytes: int
    ram_planned_bytes: int
    ram_peak_bytes: int
    logits_sha256: str

    def to_dict(self) -> dict[str, Any]:
        """Return all figures as plain values."""
        return asdict(self)


_OF_TIMED_TOKENS = """
    hits misses hit_rate uses_high uses_low uses_skipped uses_leaned upgraded saved_bytes
    device_hits device_promoted device_moved_bytes
    prefetched prefetch_precision prefetch_recall prefetching
    ram_budget_bytes ram_planned_bytes ram_peak_bytes
""".split()  # as `Stats` has them


@dataclass(frozen=True)
class _Pass:
    """What a prompt, or all timed tokens, took."""

    spent: Stats
    device_bytes_s: float

    @property
    def compute_s(self) -> float:
        total_s = self.spent.prefill_s + self.spent.decode_s
        return total_s - self.spent.wait_s - self.spent.own_s

    @property
    def bound_s(self) -> float:
        return max(self.compute_s, self.spent.bytes_read / self.device_bytes_s)


def random_tokens(vocab_size: int, num_tokens: int, seed: int) -> list[int]:
    """Draw token ids evenly from the vocabulary; equal seeds give equal ids."""
    generator = random.Random(seed)
    return [generator.randrange(vocab_size) for _ in range(num_tokens)]


def single_tokens(vocab_size: int, warm_tokens: int, tokens: int) -> Work:
    """Return the work of timing `tokens` random tokens, one after the other, after a prompt of one
    token and `warm_tokens` that are not timed."""
    return Work(random_tokens(vocab_size, 1 + warm_tokens + tokens, seed=0), 1, warm_tokens)


def device_bytes_s(planned: Plan, cache_dir: Path) -> float:
    """Measure the most bytes a second that the drive under the model gives now, on the largest of
    its files, in about 1.5 s. Raises StorageError."""
    return measure_disk(largest_part(planned), cache_dir=cache_dir, refresh=True).bytes_s


def replay_of(trace: Path | None, planned: Plan) -> Replay | None:
    """Return what forces the routing recorded in `trace` upon the planned model; None if `trace`
    is.

    Raises PromptError if the file is no trace of such a model, or if nothing is streamed.
    """
    if trace is None:
        return None
    replay = Replay(Trace.load(trace), planned.geometry)
    if planned.mode != STREAMED:
        raise PromptError("all experts are in memory and no routing can be forced: lower --ram")
    return replay


def decode(model: Model, work: Work) -> Decoded:
    """Have the model do `work`; return what it took. The routing is that of its routers, or of what
    `watch_routing` was given.

    Raises what `Model.iter_logits` raises.
    """
    begun = model.stats()
    pause = work.prompt_tokens + work.warm_tokens
    with closing(model.iter_logits(work.tokens, work.prompt_tokens, pause)) as rows:
        logits = next(rows)
        prefilled = model.stats()
        for _ in range(work.warm_tokens):
            next(rows)
        before, moments = model.stats(), [time.perf_counter()]
        for row in rows:
            moments.append(time.perf_counter())
            logits = row
    return Decoded(prefilled.since(begun), model.stats().since(before), np.diff(moments), logits)


def measure(model: Model, work: Work, drive_bytes_s: float) -> BenchResult:
    """Have the model do `work`; return all figures. `drive_bytes_s` is what the drive under it
    gives.

    Raises what `Model.logits` and `replay_of` raise.
    """
    replay = replay_of(work.trace, model.plan)
    if replay is not None:
        model.watch_routing(replay)
    try:
        decoded = decode(model, work)
    finally:
        if replay is not None:
            model.watch_routing(None)
    return _result(
        model.plan.mode,
        0 if replay is None else replay.num_steps,
        work.warm_tokens,
        _Pass(decoded.prompt, drive_bytes_s),
        _Pass(decoded.timed, drive_bytes_s),
        logits_sha256(decoded.logits),
    )


def logits_sha256(logits: npt.NDArray[np.float32]) -> str:
    """Return a digest of the bits of `logits`."""
    return hashlib.sha256(logits.tobytes()).hexdigest()


def _result(
    mode: str, trace_steps: int, warm_tokens: int, prompt: _Pass, timed: _Pass, digest: str
) -> BenchResult:
    prefill, decode = prompt.spent, timed.spent
    return BenchResult(
        mode=mode,
        trace_steps=trace_steps,
        prompt_tokens=prefill.prompt_tokens,
        warm_tokens=warm_tokens,
        decode_tokens=decode.tokens,
        prefill_s=prefill.prefill_s,
        prefill_tok_s=prefill.prefill_tok_s,
        prefill_bytes_read=prefill.bytes_read,
        prefill_bound_s=prompt.bound_s,
        decode_s=decode.decode_s,
        decode_tok_s=decode.decode_tok_s,
        decode_s_per_token=decode.decode_s / decode.tokens,
        compute_s_per_token=timed.compute_s / decode.tokens,
        own_s_per_token=decode.own_s / decode.tokens,
        wait_s_per_token=decode.wait_s / decode.tokens,
        bound_s_per_token=timed.bound_s / decode.tokens,
        ratio_to_bound=decode.decode_s / timed.bound_s,
        bytes_read_per_token=decode.bytes_read / decode.tokens,
        disk_bytes_s=decode.disk_bytes_s,
        device_bytes_s=timed.device_bytes_s,
        logits_sha256=digest,
        **{name: getattr(decode, name) for name in _OF_TIMED_TOKENS},
    )
