"""What does a pass of several rows cost? Single tokens' worth, beside a batch of plain llama.cpp.

    python -m haversack.tools.bench.rows [MODEL ...] [--rounds 7] [--passes 4]

A pass of n rows (`Model.verify`) has the bits of n single tokens; a batch of plain llama.cpp has
not. A cost is the time of a pass over that of a single token of the same engine. It is measured
with n distinct tokens and with one token n times, whose rows share most experts; with everything in
memory, and with all experts in slots. Bound: the median of the rounds is at most 1.10 of plain
llama.cpp's cost. Both engines take turns in one process and compute all logits. Without MODEL: the
built-in model.
"""

import argparse
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from haversack import edge
from haversack.edge.bench import random_tokens
from haversack.edge.plain_llama import PlainLlama
from haversack.edge.planner import Plan, streamed
from haversack.tools.command_line import positive, tool, verdict

BOUND = 1.10
NUM_ROWS = (2, 4, 7)
CTX_TOKENS, HELD_TOKENS = 512, 64  # each pass comes after as many tokens

Compute = Callable[[Sequence[int]], None]


@dataclass(frozen=True)
class RowsResult:
    """The cost of a pass of `num_rows` rows in single tokens, ours and plain llama.cpp's."""

    num_rows: int
    distinct: bool
    cost: float
    plain_cost: float

    @property
    def ratio(self) -> float:
        """Our cost over that of plain llama.cpp."""
        return self.cost / self.plain_cost


@dataclass(frozen=True)
class Passes:
    """The tokens of the passes that a round times: `single` ones, and `several` by their number of
    rows and whether they are distinct."""

    single: list[list[int]]
    several: dict[tuple[int, bool], list[list[int]]]

    @classmethod
    def drawn(cls, vocab_size: int, count: int) -> "Passes":
        """`count` passes of each kind, of random tokens."""
        firsts = random_tokens(vocab_size, count, seed=1)
        rows = {number: random_tokens(vocab_size, count * number, seed=2) for number in NUM_ROWS}
        distinct = {
            (number, True): [tokens[i : i + number] for i in range(0, len(tokens), number)]
            for number, tokens in rows.items()
        }
        repeated = {(number, False): [[first] * number for first in firsts] for number in NUM_ROWS}
        return cls([[first] for first in firsts], distinct | repeated)


def pass_s(compute: Compute, passes: Sequence[Sequence[int]]) -> float:
    """Seconds a pass."""
    start = time.perf_counter()
    for tokens in passes:
        compute(tokens)
    return (time.perf_counter() - start) / len(passes)


def measured_round(ours: Compute, plain: Compute, passes: Passes) -> list[RowsResult]:
    """A result for each kind of pass; the engines take turns."""
    singles = [pass_s(compute, passes.single) for compute in (ours, plain)]
    results = []
    for (num_rows, distinct), drawn in passes.several.items():
        costs = [pass_s(each, drawn) / s for each, s in zip((ours, plain), singles, strict=True)]
        results.append(RowsResult(num_rows, distinct, *costs))
    return results


def measure(plain: PlainLlama, planned: Plan, rounds: int, passes: int) -> list[RowsResult]:
    """Medians of the rounds. One round goes before them, to bring the experts it uses."""
    with edge.load(planned, options=edge.LoadOptions(warm_start=False)) as model:
        held = random_tokens(model.vocab_size, HELD_TOKENS, seed=0)
        for engine in (model, plain):
            engine.logits(held, prefill=HELD_TOKENS)

        def ours(tokens: Sequence[int]) -> None:
            model.verify(tokens)
            model.rewind(len(tokens))

        def theirs(tokens: Sequence[int]) -> None:
            plain.decode(tokens, every_row=True)
            plain.rewind(HELD_TOKENS)

        drawn = Passes.drawn(model.vocab_size, passes)
        measured_round(ours, theirs, drawn)
        found = [measured_round(ours, theirs, drawn) for _ in range(rounds)]
    return [_median(results) for results in zip(*found, strict=True)]


def _median(results: Sequence[RowsResult]) -> RowsResult:
    return sorted(results, key=lambda result: result.ratio)[(len(results) - 1) // 2]


def report(path: Path, rounds: int, passes: int) -> Iterator[bool]:
    """Print all results of a model; yields whether each holds."""
    planned = edge.plan(path, ram="1TiB", ctx=CTX_TOKENS)
    with PlainLlama(path, CTX_TOKENS, planned.shape.threads) as plain:
        for name, plan in (("in memory", planned), ("in slots", streamed(planned))):
            for found in measure(plain, plan, rounds, passes):
                kind = "distinct" if found.distinct else "equal"
                yield verdict(
                    f"{path.name} {name}, {found.num_rows} {kind} rows: {found.cost:.2f} single"
                    f" tokens, plain llama.cpp {found.plain_cost:.2f}:"
                    f" {found.ratio:.3f} <= {BOUND:.2f}",
                    found.ratio <= BOUND,
                )


@tool
def main(arguments: Sequence[str] | None) -> int:
    """Returns 0 if all bounds hold."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("models", type=Path, nargs="*", metavar="MODEL")
    parser.add_argument("--rounds", type=positive, default=7)
    parser.add_argument("--passes", type=positive, default=4, help="of each kind in a round")
    given = parser.parse_args(arguments)
    held = [
        holds
        for path in given.models or [edge.builtin_model()]
        for holds in report(path, given.rounds, given.passes)
    ]
    return 0 if all(held) else 1


if __name__ == "__main__":
    sys.exit(main())
