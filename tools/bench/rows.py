"""What does a pass of several rows cost? Single tokens' worth, beside a batch of plain llama.cpp.

    python -m haversack.tools.bench.rows [MODEL ...] [--rounds 7] [--passes 16]

A pass of n rows (`Model.verify`) has the bits of n single tokens; a batch of plain llama.cpp has
not. A cost is the time of a pass over that of decoding a single token with the same engine. Costs
are measured with n distinct tokens, and with n equal ones, which share most experts; with
everything in memory, and with all experts in slots. Bound: the median of the rounds is at most 1.10
of plain llama.cpp's cost. Both engines take turns in one process and compute the logits of each
row. Without MODEL: the built-in model.
"""

import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from haversack import edge
from haversack.edge.bench import Work, decode, random_tokens
from haversack.edge.model_plan import Plan
from haversack.edge.plain_llama import PlainLlama
from haversack.edge.planner import streamed
from haversack.tools.command_line import run_on_models, tool, verdict

BOUND = 1.10
NUM_ROWS = (2, 4, 7)
CTX_TOKENS, PROMPT_TOKENS = 512, 16


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
    """The tokens that a round times after `prompt`: `singles` one by one, and the passes of
    `several` rows, by the number of rows and whether these are distinct."""

    prompt: list[int]
    singles: list[int]
    several: dict[tuple[int, bool], list[list[int]]]

    @classmethod
    def drawn(cls, vocab_size: int, count: int) -> "Passes":
        """Draw `count` single tokens and passes of each kind."""
        prompt = random_tokens(vocab_size, PROMPT_TOKENS, seed=0)
        singles = random_tokens(vocab_size, count, seed=1)
        rows = {number: random_tokens(vocab_size, count * number, seed=2) for number in NUM_ROWS}
        distinct = {
            (number, True): [tokens[i : i + number] for i in range(0, len(tokens), number)]
            for number, tokens in rows.items()
        }
        equal = {(number, False): [[token] * number for token in singles] for number in NUM_ROWS}
        return cls(prompt, singles, distinct | equal)


class _Ours:
    """Times haversack."""

    def __init__(self, model: edge.Model) -> None:
        self._model = model

    def single_s(self, passes: Passes) -> float:
        """Decode the single tokens after the prompt; return the seconds a token."""
        tokens = [*passes.prompt, *passes.singles]
        spent = decode(self._model, Work(tokens, len(passes.prompt), 0)).timed
        return spent.decode_s / spent.tokens

    def pass_s(self, drawn: Sequence[Sequence[int]]) -> float:
        """Compute passes where the single tokens ended; return the seconds a pass."""
        start = time.perf_counter()
        for tokens in drawn:
            self._model.verify(tokens)
            self._model.rewind(len(tokens))
        return (time.perf_counter() - start) / len(drawn)


class _Plain:
    """Times plain llama.cpp, at the same work."""

    def __init__(self, plain: PlainLlama) -> None:
        self._plain = plain
        self._num_held = 0

    def single_s(self, passes: Passes) -> float:
        self._plain.logits(passes.prompt, prefill=len(passes.prompt))
        self._num_held = len(passes.prompt) + len(passes.singles)
        spent = self._plain.timed([[token] for token in passes.singles])
        return spent.decode_s / len(passes.singles)

    def pass_s(self, drawn: Sequence[Sequence[int]]) -> float:
        start = time.perf_counter()
        for tokens in drawn:
            self._plain.decode(tokens, every_row=True)
            self._plain.rewind(self._num_held)
        return (time.perf_counter() - start) / len(drawn)


def measured_round(ours: _Ours, plain: _Plain, passes: Passes) -> list[RowsResult]:
    """Return a result for each kind of pass; the engines take turns."""
    single_s, plain_single_s = ours.single_s(passes), plain.single_s(passes)
    return [
        RowsResult(
            num_rows,
            distinct,
            ours.pass_s(drawn) / single_s,
            plain.pass_s(drawn) / plain_single_s,
        )
        for (num_rows, distinct), drawn in passes.several.items()
    ]


def measure(plain: PlainLlama, planned: Plan, rounds: int, passes: int) -> list[RowsResult]:
    """Return the medians of the rounds. A round that does not count goes before them: it brings the
    experts that all rounds use."""
    with edge.load(planned, options=edge.LoadOptions(warm_start=False)) as model:
        engines = _Ours(model), _Plain(plain)
        drawn = Passes.drawn(model.vocab_size, passes)
        measured_round(*engines, drawn)
        found = [measured_round(*engines, drawn) for _ in range(rounds)]
    return [
        RowsResult(
            results[0].num_rows,
            results[0].distinct,
            median(result.cost for result in results),
            median(result.plain_cost for result in results),
        )
        for results in zip(*found, strict=True)
    ]


def measured(path: Path, rounds: int, passes: int) -> Iterator[bool]:
    """Print all results of a model; yield whether each holds."""
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
    """Return 0 if all bounds hold."""
    counts = {"rounds": (7, "that are timed"), "passes": (16, "of each kind in a round")}
    return run_on_models(arguments, __doc__, measured, counts)


if __name__ == "__main__":
    sys.exit(main())
