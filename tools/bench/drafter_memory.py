"""Does a drafter take the memory that was planned for it, and what is left where it is trimmed?

    python -m haversack.tools.bench.drafter_memory MODEL DRAFTER ... [--ctx 2048] [--csv FILE]

Each DRAFTER is planned and loaded for texts of MODEL, in a process of its own: with a context that
holds whole texts, as where all experts are in memory beside it, and trimmed to 512 tokens, as where
its bytes would be experts' else. Then it reads as many tokens as its context holds, and the store
of learnt pairs is filled. Before that it was loaded and closed once, because what libraries take
once is the model's. Bound: the growth of the process's anonymous memory is at most what was
planned, and at least 0.95 of it.
"""

import argparse
import gc
import pickle
import subprocess
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from itertools import product
from pathlib import Path

from haversack import edge
from haversack.cache.cross_vocab import MOST_RUN, Pair, PairStore
from haversack.cache.ngram import NgramDrafter, NgramMemory
from haversack.devices.llama import MOST_ROWS, ContextShape
from haversack.devices.llama_model import LlamaModel
from haversack.devices.memory import PeakMeter, anonymous_bytes
from haversack.devices.system import host
from haversack.devices.units import format_bytes
from haversack.edge.draft_model import DraftModel
from haversack.edge.draft_sizes import WHOLE
from haversack.edge.draft_text import Vocabularies
from haversack.edge.drafter_plan import (
    SHORT_WINDOW_TOKENS,
    DrafterPlan,
    Drafting,
    plan_drafting,
)
from haversack.tools.command_line import give_table, positive, tool, verdict

LEAST_SHARE = 0.95
_PAIRS = 20_000  # more than a store holds


def taken_bytes(model: Path, drafting: Drafting, target: ContextShape) -> int:
    """Return how much the anonymous memory of this process grows, at most, while what drafts for
    texts of `target`'s shape is loaded and used."""
    read = LlamaModel(model, dry=True)
    read.vocabulary.piece(0)  # its table is the target's
    if drafting.drafter is not None:
        DraftModel(drafting.drafter).close()
    gc.collect()
    host.give_back_freed_memory()
    before, peak = anonymous_bytes(), PeakMeter()
    with ExitStack() as opened:
        held = _use(drafting, target, read, opened)
        found = peak.look() - before
        del held
    read.close()
    return found


def _use(drafting: Drafting, target: ContextShape, read: LlamaModel, opened: ExitStack) -> object:
    """Use all of what drafts, and return what holds it."""
    sizes, num_tokens = drafting.sizes, drafting.sizes.tokens_of(target)
    memory = NgramMemory(sizes.table_bytes)
    memory.table[:] = 1
    for _ in range(target.sequences):
        drafter = NgramDrafter(memory, num_tokens, 0, MOST_ROWS)
        opened.callback(drafter.close)
        drafter.propose([idx * idx % 251 for idx in range(num_tokens)], 1)
    return memory, drafting.drafter and _use_model(drafting.drafter, read, opened)


def _use_model(planned: DrafterPlan, read: LlamaModel, opened: ExitStack) -> object:
    drafter, pairs = DraftModel(planned), PairStore(planned.pair_bytes)
    opened.callback(drafter.close)
    both = Vocabularies(read.vocabulary, drafter.model.vocabulary, pairs)
    known = both.draft.num_tokens
    tokens = [number % known for number in range(planned.shape.ctx_tokens)]
    for sequence in range(planned.shape.sequences):
        drafter.next_token(sequence, tokens[:-1])
        drafter.next_token(sequence, tokens)
    for number in range(_PAIRS):
        run = tuple(range(number, number + MOST_RUN))
        pairs.learn(Pair(run, run))
    return both


def taken_elsewhere(model: Path, drafting: Drafting, target: ContextShape) -> int:
    """Return `taken_bytes` of a process of its own. Raises RuntimeError with what it said."""
    command = [sys.executable, "-m", "haversack.tools.bench.drafter_memory", "--here", str(model)]
    given = pickle.dumps((model, drafting, target))
    done = subprocess.run(command, input=given, capture_output=True)
    if done.returncode:
        raise RuntimeError(done.stderr.decode(errors="replace").strip().splitlines()[-1])
    return int(done.stdout)


def row_of(planned: DrafterPlan, most_bytes: int, found: int) -> dict[str, str]:
    """Return the row of a drafter: its parts as planned, what drafts beside it without a model, the
    sum, which is `most_bytes`, and what was taken."""
    parts = {name: format_bytes(num_bytes) for name, num_bytes in planned.parts().items()}
    return {
        "drafter": planned.path.name,
        "window": str(planned.shape.ctx_tokens),
        **parts,
        "drafts": format_bytes(most_bytes - planned.num_bytes),
        "planned": format_bytes(most_bytes),
        "taken": format_bytes(found),
        "taken/planned": f"{found / most_bytes:.3f}",
    }


@tool
def main(arguments: Sequence[str] | None) -> int:
    """Return 0 if the bound holds for each drafter."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", type=Path)
    parser.add_argument("drafters", type=Path, nargs="*", metavar="DRAFTER")
    parser.add_argument("--ctx", type=positive, default=2048)
    parser.add_argument("--csv", type=Path)
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    if given.here:
        print(taken_bytes(*pickle.load(sys.stdin.buffer)))
        return 0
    rows, held = list[dict[str, str]](), list[bool]()
    target = edge.plan(given.model, ctx=given.ctx).shape
    for drafter, window in product(given.drafters, (None, SHORT_WINDOW_TOKENS)):
        drafting = plan_drafting(drafter, target, replace(WHOLE, window_tokens=window))
        planned, most_bytes = drafting.drafter, drafting.num_bytes(target)
        assert planned is not None
        found = taken_elsewhere(given.model, drafting, target)
        rows.append(row_of(planned, most_bytes, found))
        where = f"{drafter.name}, {planned.shape.ctx_tokens} tokens: taken / planned"
        share = found / most_bytes
        held.append(verdict(f"{where} {share:.3f}", LEAST_SHARE <= share <= 1))
    give_table(rows, given.csv)
    return 0 if all(held) else 1


if __name__ == "__main__":
    sys.exit(main())
