"""How fast a model runs in its budget: one prompt of random tokens, then tokens one at a time."""

import random
from collections.abc import Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from typing import Any

from haversack.edge.model import Model
from haversack.edge.stats import Stats


@dataclass(frozen=True)
class BenchResult:
    """What one measurement found. The counts and `wait_s` are of the decoded tokens alone,
    `prefill_bytes_read` is the prompt's; `mode` is the plan's. `prefetch_precision` is the share
    of the `prefetched` experts that were then chosen, `prefetching` whether experts were read
    ahead at the end (see `Stats`)."""

    mode: str
    prompt_tokens: int
    decode_tokens: int
    prefill_s: float
    prefill_tok_s: float
    prefill_bytes_read: int
    decode_s: float
    decode_s_per_token: float
    decode_tok_s: float
    hits: int
    misses: int
    hit_rate: float
    bytes_read_per_token: float
    disk_bytes_s: float
    wait_s: float
    prefetched: int
    prefetch_precision: float
    prefetching: bool
    ram_budget_bytes: int
    ram_planned_bytes: int
    ram_peak_bytes: int

    def to_dict(self) -> dict[str, Any]:
        """All figures as plain values."""
        return asdict(self)


def random_tokens(vocab_size: int, num_tokens: int, seed: int) -> list[int]:
    """Token ids drawn evenly from the vocabulary; equal seeds give equal ones."""
    generator = random.Random(seed)
    return [generator.randrange(vocab_size) for _ in range(num_tokens)]


def measure(model: Model, tokens: Sequence[int], prompt_tokens: int) -> BenchResult:
    """Time the first `prompt_tokens` of `tokens` as a prompt and the others one at a time.

    Raises what `Model.logits` raises.
    """
    start = model.stats()
    with closing(model.iter_logits(tokens, prompt_tokens)) as rows:
        next(rows)
        between = model.stats()
        for _ in rows:
            pass
    end = model.stats()
    return _result(model.plan.mode, between.since(start), end.since(between))


def _result(mode: str, prefill: Stats, decode: Stats) -> BenchResult:
    return BenchResult(
        mode=mode,
        prompt_tokens=prefill.prompt_tokens,
        decode_tokens=decode.tokens,
        prefill_s=prefill.prefill_s,
        prefill_tok_s=prefill.prefill_tok_s,
        prefill_bytes_read=prefill.bytes_read,
        decode_s=decode.decode_s,
        decode_s_per_token=decode.decode_s / decode.tokens,
        decode_tok_s=decode.decode_tok_s,
        hits=decode.hits,
        misses=decode.misses,
        hit_rate=decode.hit_rate,
        bytes_read_per_token=decode.bytes_read / decode.tokens,
        disk_bytes_s=decode.disk_bytes_s,
        wait_s=decode.wait_s,
        prefetched=decode.prefetched,
        prefetch_precision=decode.prefetch_precision,
        prefetching=decode.prefetching,
        ram_budget_bytes=decode.ram_budget_bytes,
        ram_planned_bytes=decode.ram_planned_bytes,
        ram_peak_bytes=decode.ram_peak_bytes,
    )
