"""Does the second turn of a chat cost its new tokens alone?

    python -m haversack.tools.bench.turns [MODEL ...] [--rounds 7] [--history 2000] [--new 128]

Each round times the first token after the second turn of a text whose history the model holds, with
one thread and everything in memory. Medians of the rounds; without MODEL: the built-in model.
Bounds:

- No token of the history is computed again.
- The first token takes at most 1.1 of the time of the passes that compute the new tokens: what is
  not llama.cpp's is small.
- The processor seconds are at most 1.1 of those of plain llama.cpp, given the same tokens behind
  the same history.

Shown beside 1.1, but not judged, are the new tokens without a history, which have less to attend
to: how much that is, is the model's, and plain llama.cpp needs it as well. Once more with a quarter
of the experts in slots, on a steady drive of 1 GB/s, where reading takes most of a turn's time.

Shown is also what a history on disk (`--kv-disk`) adds, and what words cost before any token is
computed: rendering and tokenizing the whole chat.
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
from haversack.edge.plain_llama import PlainLlama
from haversack.edge.planner import streamed
from haversack.tools.bench.steady_drive import steady_drive
from haversack.tools.command_line import run_on_models, tool, verdict

BOUND = 1.1
_BATCH = 512
_THREADS = 1  # so that processor seconds say what a turn takes, also on a busy computer
_SPARE_TOKENS = 8
_SHARE, _DRIVE_BYTES_S = 0.25, 1e9


@dataclass(frozen=True)
class Turn:
    """What the first token after a prompt took, in seconds and in processor seconds, how long the
    passes with the prompt's tokens took of that, and how many tokens they computed."""

    first_token_s: float
    processor_s: float
    passes_s: float
    computed_tokens: int


@dataclass(frozen=True)
class Work:
    """The tokens of a first turn, and those that a second one adds."""

    history: Sequence[int]
    new: Sequence[int]

    @classmethod
    def random(cls, path: Path, history: int, new: int) -> "Work":
        """Return so many random tokens of the model at `path`."""
        with edge.load(path, ctx=_SPARE_TOKENS) as model:
            tokens = random_tokens(model.vocab_size, history + new, 0)
        return cls(tokens[:history], tokens[history:])

    @property
    def ctx_tokens(self) -> int:
        """How many tokens a context must hold."""
        return len(self.history) + len(self.new) + _SPARE_TOKENS

    def rolled(self, number: int) -> list[int]:
        """Return new tokens that are others for each `number`, so that none was computed before."""
        at = 1 + number % (len(self.new) - 1)
        return [*self.new[at:], *self.new[:at]]


def turn(model: edge.Model, prompt: Sequence[int]) -> Turn:
    """Time the first token after `prompt`, with what the model holds of it already."""
    before, began_s, processor_s = model.stats(), time.perf_counter(), time.process_time()
    next(iter(model.generate(prompt, max_tokens=1, temperature=0)), "")
    spent_s, processor_s = time.perf_counter() - began_s, time.process_time() - processor_s
    spent = model.stats().since(before)
    return Turn(spent_s, processor_s, spent.prefill_s, spent.prompt_tokens)


def turns(model: edge.Model, work: Work, rounds: int) -> tuple[list[Turn], list[Turn]]:
    """Return turns of the new tokens alone, and second turns. The model holds two texts."""
    turn(model, work.history)
    alone, second = list[Turn](), list[Turn]()
    for number in range(rounds):
        new = work.rolled(number)
        alone.append(turn(model, new))
        second.append(turn(model, [*work.history, *new]))
    return alone, second


def turns_from_disk(model: edge.Model, work: Work, rounds: int) -> list[Turn]:
    """Return second turns whose history lies on disk. The model holds one text in memory."""
    turn(model, work.history)
    found = list[Turn]()
    for number in range(rounds):
        new = work.rolled(number)
        turn(model, new)
        found.append(turn(model, [*work.history, *new]))
    return found


def plain_turns(path: Path, work: Work, rounds: int) -> tuple[list[float], list[float]]:
    """Return the processor seconds of plain llama.cpp for the new tokens alone, and behind the
    history."""
    alone, second = list[float](), list[float]()
    with PlainLlama(path, work.ctx_tokens, _THREADS, _BATCH) as plain:
        for held, found in ((0, alone), (len(work.history), second)):
            for first in range(0, held, _BATCH):
                plain.decode(work.history[first : first + _BATCH])
            for number in range(rounds):
                began_s = time.process_time()
                plain.decode(work.rolled(number))
                found.append(time.process_time() - began_s)
                plain.rewind(held)
    return alone, second


def opened(path: Path, work: Work, sequences: int, folder: Path | None = None) -> edge.Model:
    """Load the model, with texts kept in `folder`."""
    kv_disk = None if folder is None else "64GiB"
    options = edge.LoadOptions(
        batch=_BATCH,
        sequences=sequences,
        speculate="off",
        warm_start=False,
        cache_dir=folder,
        kv_disk=kv_disk,
    )
    return edge.load(path, ctx=work.ctx_tokens, threads=_THREADS, options=options)


def streamed_s(path: Path, work: Work, rounds: int) -> tuple[float, float]:
    """Return the median times to the first token of the new tokens alone, and of second turns, with
    few experts in slots on a steady drive. The first round is not timed."""
    planned = edge.plan(path, ctx=work.ctx_tokens, batch=_BATCH, sequences=2)
    drive = steady_drive(path, _DRIVE_BYTES_S)
    options = edge.LoadOptions(speculate="off", warm_start=False, open_file=drive.open)
    with edge.load(streamed(planned, _SHARE), options=options) as model:
        alone, second = turns(model, work, rounds)
    return _median(alone[1:], "first_token_s"), _median(second[1:], "first_token_s")


def words_s(model: edge.Model, num_tokens: int) -> float | None:
    """Return how long rendering and tokenizing a chat of about `num_tokens` takes; None for a model
    that has no words."""
    said = "The old king told his three daughters a story about a fox. "
    try:
        message_tokens = len(model.tokenize(said * 8))
        count = max(1, num_tokens // message_tokens // 2)
        told = [{"role": role, "content": said * 8} for role in ("user", "assistant") * count]
        messages = [*told, {"role": "user", "content": "And then?"}]
        model.chat(messages, 1).close()
        began_s = time.process_time()
        model.chat(messages, 1).close()
    except edge.HaversackError:
        return None
    return time.process_time() - began_s


def measured(path: Path, rounds: int, history: int, new: int) -> Iterator[bool]:
    """Print the times and the verdicts; yield whether each holds. A round that is not timed goes
    before the others."""
    work = Work.random(path, history, new)
    print(f"{path.name}: {history} tokens of history, {new} new ones, {_THREADS} thread")
    with opened(path, work, 2) as model:
        alone, second = (each[1:] for each in turns(model, work, rounds + 1))
        rendered_s = words_s(model, history)
    with tempfile.TemporaryDirectory() as folder, opened(path, work, 1, Path(folder)) as model:
        from_disk = turns_from_disk(model, work, rounds + 1)[1:]
    plain_alone, plain_second = (each[1:] for each in plain_turns(path, work, rounds + 1))
    most = max(each.computed_tokens for each in (*second, *from_disk))
    yield verdict(f"a second turn computes {most} tokens <= {new}", most <= new)
    yield _judged(
        "the first token", _median(second, "first_token_s"), _median(second, "passes_s"), "passes"
    )
    own_s, alone_s = _median(second, "processor_s"), _median(alone, "processor_s")
    plain_s = statistics.median(plain_second)
    plain_ratio = plain_s / statistics.median(plain_alone)
    yield _judged("its processor seconds", own_s, plain_s, "plain llama.cpp")
    print(
        f"without a history {alone_s:.4f} s: {own_s / alone_s:.3f} beside {BOUND},"
        f" plain llama.cpp {plain_ratio:.3f}"
    )
    alone_s, second_s = streamed_s(path, work, rounds + 1)
    print(
        f"streamed, without a history {alone_s:.4f} s, second turn {second_s:.4f}:"
        f" {second_s / alone_s:.3f} beside {BOUND}"
    )
    brought_s = statistics.median(each.first_token_s - each.passes_s for each in from_disk)
    print(f"{brought_s:.4f} s more with the history on disk")
    if rendered_s is not None:
        print(f"{rendered_s:.4f} s to render and tokenize a chat of that length")


def _judged(what: str, spent_s: float, beside_s: float, beside: str) -> bool:
    ratio = spent_s / beside_s
    return verdict(
        f"{what} {spent_s:.4f} s, {beside} {beside_s:.4f}: {ratio:.3f} <= {BOUND}", ratio <= BOUND
    )


def _median(found: Sequence[Turn], what: str) -> float:
    return float(statistics.median(getattr(each, what) for each in found))


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
