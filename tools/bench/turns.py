"""Does the second turn of a chat cost its new tokens alone?

    python -m haversack.tools.bench.turns [MODEL ...] [--rounds 7] [--history 2000] [--new 128]

Each round times the first token after the second turn of a text whose history the model holds.
Bounds: no token of the history is computed again, and the first token takes at most 1.1 of the time
of the passes that compute the new tokens (median of the rounds). Shown are what a history on disk
(`--kv-disk`) adds, and the same tokens without a history, which have less to attend to. Everything
is in memory. Without MODEL: the built-in model.
"""

import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from haversack import edge
from haversack.edge.bench import random_tokens
from haversack.tools.command_line import run_on_models, tool, verdict

BOUND = 1.1


@dataclass(frozen=True)
class Turn:
    """What the first token after a prompt took, how long the passes with the prompt's tokens took
    of that, and how many tokens they computed."""

    first_token_s: float
    passes_s: float
    computed_tokens: int


def turn(model: edge.Model, prompt: Sequence[int]) -> Turn:
    """Time the first token after `prompt`, with what the model holds of it already."""
    before, start = model.stats(), time.perf_counter()
    next(iter(model.generate(prompt, max_tokens=1, temperature=0)), "")
    spent_s = time.perf_counter() - start
    spent = model.stats().since(before)
    return Turn(spent_s, spent.prefill_s, spent.prompt_tokens)


def turns(model: edge.Model, history: Sequence[int], new: Sequence[int]) -> tuple[Turn, Turn]:
    """Return the new tokens alone, and as a second turn. The model holds one text, in memory."""
    turn(model, history)
    alone = turn(model, new)
    turn(model, history)
    return alone, turn(model, [*history, *new])


def turns_from_disk(
    model: edge.Model, history: Sequence[int], new: Sequence[int], rounds: int
) -> list[Turn]:
    """Return second turns whose history lies on disk. The model holds one text in memory; each time
    the tokens of the turn are others, so that only the history is found."""
    turn(model, history)
    found = list[Turn]()
    for number in range(rounds):
        rolled = [*new[number + 1 :], *new[: number + 1]]
        turn(model, rolled)
        found.append(turn(model, [*history, *rolled]))
    return found


def opened(path: Path, ctx: int, folder: Path | None = None) -> edge.Model:
    """Load the model, with texts kept in `folder`."""
    kv_disk = None if folder is None else "64GiB"
    options = edge.LoadOptions(speculate="off", warm_start=False, cache_dir=folder, kv_disk=kv_disk)
    return edge.load(path, ctx=ctx, options=options)


def measured(path: Path, rounds: int, history: int, new: int) -> Iterator[bool]:
    """Print the times and both verdicts; yield whether each holds. A round that is not timed goes
    before the others."""
    ctx = history + new + 8
    with opened(path, ctx) as model:
        tokens = random_tokens(model.vocab_size, history + new, 0)
        begun, added = tokens[:history], tokens[history:]
        found = [turns(model, begun, added) for _ in range(rounds + 1)][1:]
    with tempfile.TemporaryDirectory() as folder, opened(path, ctx, Path(folder)) as model:
        from_disk = turns_from_disk(model, begun, added, rounds + 1)[1:]
    alone, second = zip(*found, strict=True)
    name = f"{path.name}, {history} tokens of history and {new} new ones"
    most = max(each.computed_tokens for each in (*second, *from_disk))
    yield verdict(f"{name}: a second turn computes {most} tokens <= {new}", most <= new)
    first_s, passes_s, alone_s = median_s(second), passes_of_s(second), median_s(alone)
    ratio = statistics.median(each.first_token_s / each.passes_s for each in second)
    yield verdict(
        f"{name}: first token of a second turn {first_s:.4f} s, passes with its new tokens"
        f" {passes_s:.4f}: {ratio:.3f} <= {BOUND}",
        ratio <= BOUND,
    )
    brought_s = statistics.median(each.first_token_s - each.passes_s for each in from_disk)
    print(f"{name}: {brought_s:.4f} s more with the history on disk")
    print(f"{name}: {alone_s:.4f} s without a history, {first_s / alone_s:.2f} times less")


def median_s(found: Sequence[Turn]) -> float:
    """Return the median time to their first tokens."""
    return statistics.median(each.first_token_s for each in found)


def passes_of_s(found: Sequence[Turn]) -> float:
    """Return the median time of the passes with their tokens."""
    return statistics.median(each.passes_s for each in found)


@tool
def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark; return 0 if all bounds hold."""
    counts = {
        "rounds": (7, "timed rounds"),
        "history": (2000, "tokens of the first turn"),
        "new": (128, "tokens of the second turn"),
    }
    return run_on_models(arguments, __doc__, measured, counts)


if __name__ == "__main__":
    sys.exit(main())
