"""Do texts that are written together come faster than one after the other?

    python -m haversack.tools.bench.sequences [MODEL ...] [--rounds 7] [--tokens 64]

Each round generates four texts one after the other, then together. Bounds: the tokens a second of
texts written together (medians of the rounds) are at least 1.0 of those of texts written one after
the other with everything in memory, and at least 1.1 with a quarter of the experts in slots on a
steady drive of 1 GB/s. Each text is the same both times. Nothing is drafted: each round writes what
the rounds before wrote, which drafts would know. Texts that end early leave the others alone, so
their lengths are told. Without MODEL: the built-in model.
"""

import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

from haversack import edge
from haversack.edge.bench import random_tokens
from haversack.edge.planner import streamed
from haversack.tools.bench.steady_drive import steady_drive
from haversack.tools.command_line import run_on_models, tool, verdict

SHARE, RATE_BYTES_S = 0.25, 1e9
RESIDENT_BOUND, STREAMED_BOUND = 1.0, 1.1
CTX_TOKENS, PROMPT_TOKENS = 512, 16
# The built-in model goes on for more than 128 tokens from each of these.
OPENINGS = ("Once upon a time", "One day, a girl", "Long ago, in a", "The old king")


@dataclass(frozen=True)
class Written:
    """Texts, their lengths in tokens, and the tokens a second of all of them."""

    texts: list[str]
    lengths: list[int]
    tok_s: float


def prompts(model: edge.Model) -> list[str | list[int]]:
    """Return openings of stories, or random ids for a model without a vocabulary."""
    try:
        model.tokenize(OPENINGS[0])
    except edge.PromptError:
        size = model.vocab_size
        return [random_tokens(size, PROMPT_TOKENS, seed) for seed in range(len(OPENINGS))]
    return list(OPENINGS)


def write_apart(model: edge.Model, num_tokens: int) -> Written:
    """Generate the texts one after the other."""
    return _written(model, num_tokens, lambda texts: list(map("".join, texts)))


def write_together(model: edge.Model, num_tokens: int) -> Written:
    """Generate the texts together; a thread reads each of them."""
    with ThreadPoolExecutor(len(OPENINGS)) as pool:
        return _written(model, num_tokens, lambda texts: list(pool.map("".join, texts)))


def _written(
    model: edge.Model, num_tokens: int, read: Callable[[Sequence[edge.Generation]], list[str]]
) -> Written:
    texts = [model.generate(each, num_tokens, temperature=0) for each in prompts(model)]
    before, start = model.stats(), time.perf_counter()
    found = read(texts)
    spent_s = time.perf_counter() - start
    tok_s = model.stats().since(before).tokens / spent_s
    return Written(found, [len(text.tokens) for text in texts], tok_s)


def holds(name: str, model: edge.Model, num_tokens: int, rounds: int, bound: float) -> bool:
    """Print the speeds and both verdicts. A round that is not timed goes before the others."""
    write_apart(model, num_tokens)
    write_together(model, num_tokens)
    apart, together = list[Written](), list[Written]()
    for _ in range(rounds):
        apart.append(write_apart(model, num_tokens))
        together.append(write_together(model, num_tokens))
    apart_tok_s, together_tok_s = (
        statistics.median(written.tok_s for written in found) for found in (apart, together)
    )
    ratio = together_tok_s / apart_tok_s
    lengths = ", ".join(map(str, apart[0].lengths))
    print(f"{name}: texts of {lengths} tokens")
    same = all(written.texts == apart[0].texts for written in (*apart, *together))
    held = [
        verdict(
            f"{name}: {len(OPENINGS)} texts together {together_tok_s:.1f} tok/s, one after the"
            f" other {apart_tok_s:.1f}: {ratio:.2f} >= {bound}",
            ratio >= bound,
        ),
        verdict(f"{name}: each text is the one it is alone", same),
    ]
    return all(held)


def measured(path: Path, rounds: int, tokens: int) -> Iterator[bool]:
    """Print both results of a model; yield whether each holds."""
    planned = edge.plan(path, ram="1TiB", ctx=CTX_TOKENS, sequences=len(OPENINGS))
    options = edge.LoadOptions(speculate="off")
    with edge.load(planned, options=options) as model:
        name = f"{path.name} in memory"
        yield holds(name, model, tokens, rounds, RESIDENT_BOUND)
    drive = steady_drive(path, RATE_BYTES_S)
    options = replace(options, open_file=drive.open, warm_start=False)
    with edge.load(streamed(planned, SHARE), options=options) as model:
        name = f"{path.name} with {SHARE:.0%} in slots at {RATE_BYTES_S / 1e9:g} GB/s"
        yield holds(name, model, tokens, rounds, STREAMED_BOUND)


@tool
def main(arguments: Sequence[str] | None) -> int:
    """Return 0 if all bounds hold."""
    counts = {"rounds": (7, "that are timed"), "tokens": (64, "of each text")}
    return run_on_models(arguments, __doc__, measured, counts)


if __name__ == "__main__":
    sys.exit(main())
