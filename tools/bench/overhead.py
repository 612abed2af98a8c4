"""What does our own code cost when nothing is read? Decoding beside plain llama.cpp.

    python -m haversack.tools.bench.overhead [MODEL ...] [--tokens 128] [--rounds 7]

The built-in model is measured first, then each MODEL. Bounds, as shares of plain llama.cpp's speed:

    all experts in slots            0.92 on the built-in model, 0.95 on others
    all in memory, nothing hooked   0.95 on the built-in model, 0.98 on others

A token's time is that of the whole loop: from one token's logits, copied, to the next one's. And
our own code between products takes at most 0.02 of it. All are medians of the rounds. Both engines
take turns in one process, so that both meet the same changes of the machine's speed. Ours has
decoded for a second before.
"""

import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from haversack import edge
from haversack.edge.bench import Work, decode, single_tokens
from haversack.edge.model_plan import Plan
from haversack.edge.plain_llama import PlainLlama
from haversack.edge.planner import streamed
from haversack.tools.command_line import run_on_models, tool, verdict

CTX_TOKENS = 512
MOST_OWN = 0.02
WARM_S = 1.0  # meanwhile experts come into slots, and ways for threads to wait are tried
SETTLE_S = 0.1  # OpenMP's threads keep a processor busy for a while after their last token


class Bounds(NamedTuple):
    """The least share of plain llama.cpp's speed."""

    slots: float
    resident: float


BUILTIN_BOUNDS, OTHER_BOUNDS = Bounds(0.92, 0.95), Bounds(0.95, 0.98)


class Overhead(NamedTuple):
    """Plain llama.cpp's seconds a token over ours, and the share of ours in our own code."""

    ratio: float
    own_share: float

    def holds(self, bound: float) -> bool:
        return self.ratio >= bound and self.own_share <= MOST_OWN


def overhead(
    plain: PlainLlama, planned: Plan, tokens: int, rounds: int, options: edge.LoadOptions
) -> Overhead:
    """Decode the same random tokens in each round; return the medians."""
    with edge.load(planned, options=options) as model:
        work = single_tokens(model.vocab_size, 0, tokens)
        warm_until_s = time.perf_counter() + WARM_S
        while time.perf_counter() < warm_until_s:
            decode(model, work)
        _plain_s_per_token(plain, work)
        found = [_round(plain, model, work) for _ in range(rounds)]
    ratios, own_shares = zip(*found, strict=True)
    return Overhead(statistics.median(ratios), statistics.median(own_shares))


def _round(plain: PlainLlama, model: edge.Model, work: Work) -> Overhead:
    plain_s = _plain_s_per_token(plain, work)
    time.sleep(SETTLE_S)
    done = decode(model, work)
    time.sleep(SETTLE_S)
    assert done.timed.misses == 0, "the experts were to be resident"
    return Overhead(plain_s / float(done.tokens_s.mean()), done.timed.own_s / done.timed.decode_s)


def _plain_s_per_token(plain: PlainLlama, work: Work) -> float:
    first, *others = work.tokens
    plain.logits([first], prefill=1)
    began_s = time.perf_counter()
    for token in others:
        plain.decode([token])
        plain.last_logits()
    return (time.perf_counter() - began_s) / len(others)


def measured(path: Path, rounds: int, tokens: int) -> Iterator[bool]:
    """Print both results of a model; yield whether each holds."""
    bounds = BUILTIN_BOUNDS if path == edge.builtin_model() else OTHER_BOUNDS
    planned = edge.plan(path, ram="1TiB", ctx=CTX_TOKENS)
    options = edge.LoadOptions(warm_start=False)
    with PlainLlama(path, CTX_TOKENS, planned.shape.threads) as plain:
        for name, plan, bound in (
            ("all experts in slots", streamed(planned), bounds.slots),
            ("all in memory, nothing hooked", planned, bounds.resident),
        ):
            found = overhead(plain, plan, tokens, rounds, options)
            yield verdict(
                f"{path.name}, {name}: {found.ratio:.3f} >= {bound} of plain llama.cpp's speed,"
                f" own code {found.own_share:.3f} <= {MOST_OWN} of a token",
                found.holds(bound),
            )


@tool
def main(arguments: Sequence[str] | None) -> int:
    """Return 0 if all bounds hold."""
    counts = {"rounds": (7, "that are timed"), "tokens": (128, "of a round")}
    return run_on_models(arguments, __doc__, measured, counts, always=[edge.builtin_model()])


if __name__ == "__main__":
    sys.exit(main())
