"""What does the hook cost when nothing is read? Decode against plain llama.cpp, in turns.

    python -m haversack.tools.bench.overhead MODEL [--tokens 32] [--rounds 5]

Bounds: all experts in slots and the hook on, at least 0.90 of plain llama.cpp's speed; everything
in memory and no hook, at least 0.98; and at most 0.05 of a token's time in our own code. Medians of
the rounds; both engines take turns in one process, so the machine's mood is the same for both.
"""

import argparse
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from haversack import edge
from haversack.edge.plain_llama import PlainLlama
from haversack.edge.planner import Plan, streamed
from haversack.tools.counts import positive
from haversack.tools.program import run

MOST_OWN = 0.05
BOUNDS = {"hook on, all experts in slots": 0.90, "all in memory, no hook": 0.98}


class Overhead(NamedTuple):
    """Plain llama.cpp's seconds a token over ours, and the share of ours in our own code."""

    ratio: float
    own_share: float

    def holds(self, bound: float) -> bool:
        return self.ratio >= bound and self.own_share <= MOST_OWN


def overhead(
    plain: PlainLlama,
    planned: Plan,
    tokens: Sequence[int],
    rounds: int,
    options: edge.LoadOptions | None = None,
) -> Overhead:
    """Medians over the rounds, of decoding `tokens`."""
    ratios, own_shares = [], []
    with edge.load(planned, options=options) as model:
        model.logits(tokens, prefill=1)  # brings every expert these tokens use
        for _ in range(rounds):
            plain.logits(tokens[:1], prefill=1)
            plain_s = plain.decode_s_per_token(tokens[1:])
            before = model.stats()
            model.logits(tokens, prefill=1)
            spent = model.stats().since(before)
            assert spent.misses == 0, "the experts were to be resident"
            ratios.append(plain_s / (spent.decode_s / spent.tokens))
            own_shares.append(spent.own_s / (spent.prefill_s + spent.decode_s))
    return Overhead(statistics.median(ratios), statistics.median(own_shares))


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns 0 if both bounds hold."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("--tokens", type=positive, default=32)
    parser.add_argument("--rounds", type=positive, default=5)
    given = parser.parse_args(arguments)
    planned = edge.plan(given.model, ram="1TiB", ctx=512)
    tokens = np.random.default_rng(0).integers(0, 500, given.tokens + 1).tolist()
    plans = dict(zip(BOUNDS, (streamed(planned), planned), strict=True))
    held = True
    for name, bound in BOUNDS.items():
        with PlainLlama(given.model, 512, planned.shape.threads) as plain:
            plain.logits(tokens, prefill=1)
            started = time.perf_counter()
            found = overhead(
                plain, plans[name], tokens, given.rounds, edge.LoadOptions(warm_start=False)
            )
        verdict = "holds" if found.holds(bound) else "FAILS"
        held = held and found.holds(bound)
        print(
            f"{name}: {found.ratio:.3f} of plain llama.cpp's decode speed, bound {bound}, own code"
            f" {found.own_share:.3f} of a token, bound {MOST_OWN}: {verdict}"
            f" ({given.rounds} rounds in {time.perf_counter() - started:.0f} s)"
        )
    return 0 if held else 1


if __name__ == "__main__":
    run(main)
