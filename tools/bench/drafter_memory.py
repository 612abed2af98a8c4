"""Does a drafter take the memory that was planned for it, and what is left where it is trimmed?

    python -m haversack.tools.bench.drafter_memory MODEL DRAFTER ... [--ctx 2048] [--csv FILE]

Each DRAFTER is planned and loaded for texts of MODEL, in a process of its own: with a context that
holds whole texts, as where all experts are in memory beside it, and trimmed to 512 tokens, as where
its bytes would be experts' else. Then it reads as many tokens as its context holds, and the store
of learnt pairs is filled. Bound: the growth of the process's anonymous memory is at most what was
planned, and at least 0.9 of it.
"""

import argparse
import gc
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from haversack import edge
from haversack.cache.cross_vocab import MOST_RUN, Pair, PairStore
from haversack.devices.llama import LlamaModel
from haversack.devices.memory import PeakMeter, anonymous_bytes
from haversack.devices.system import host
from haversack.devices.units import format_bytes
from haversack.edge.draft_model import DraftModel
from haversack.edge.draft_text import Vocabularies
from haversack.edge.drafter_plan import SHORT_WINDOW_TOKENS, DrafterPlan, plan_drafter
from haversack.tools.command_line import give_table, positive, tool, verdict

LEAST_SHARE = 0.9
_PAIRS = 20_000  # more than a store holds


def planned_of(model: Path, drafter: Path, ctx: int, most_tokens: int | None) -> DrafterPlan:
    """Return the plan of the drafter for texts of the model."""
    return plan_drafter(drafter, edge.plan(model, ctx=ctx).shape, most_tokens)


def taken_bytes(model: Path, planned: DrafterPlan) -> int:
    """Return how much the anonymous memory of this process grows, at most, while the drafter is
    loaded and used."""
    target = LlamaModel(model, dry=True)
    target.vocabulary.piece(0)  # its table is the target's
    gc.collect()
    host.give_back_freed_memory()
    before, peak = anonymous_bytes(), PeakMeter()
    drafter, pairs = DraftModel(planned), PairStore()
    both = Vocabularies(target.vocabulary, drafter.model.vocabulary, pairs)
    known = both.draft.num_tokens
    tokens = [number % known for number in range(planned.shape.ctx_tokens)]
    drafter.next_token(0, tokens[:-1])
    drafter.next_token(0, tokens)
    for number in range(_PAIRS):
        run = tuple(range(number, number + MOST_RUN))
        pairs.learn(Pair(run, run))
    found = peak.look() - before
    drafter.close()
    target.close()
    return found


def taken_elsewhere(model: Path, drafter: Path, ctx: int, most_tokens: int | None) -> int:
    """Return `taken_bytes` of a process of its own. Raises RuntimeError with what it said."""
    command = [sys.executable, "-m", __spec__.name, model, drafter, "--ctx", str(ctx), "--here"]
    command += ["--window", str(most_tokens or 0)]
    done = subprocess.run([str(each) for each in command], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(done.stderr.strip().splitlines()[-1])
    return int(done.stdout)


def row_of(drafter: Path, planned: DrafterPlan, found: int) -> dict[str, str]:
    """Return the row of a drafter: its parts as planned, their sum, and what it took."""
    parts = {name: format_bytes(num_bytes) for name, num_bytes in planned.parts().items()}
    return {
        "drafter": drafter.name,
        "window": str(planned.shape.ctx_tokens),
        **parts,
        "planned": format_bytes(planned.num_bytes),
        "taken": format_bytes(found),
        "taken/planned": f"{found / planned.num_bytes:.3f}",
    }


@tool
def main(arguments: Sequence[str] | None) -> int:
    """Return 0 if the bound holds for each drafter."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", type=Path)
    parser.add_argument("drafters", type=Path, nargs="+", metavar="DRAFTER")
    parser.add_argument("--ctx", type=positive, default=2048)
    parser.add_argument("--csv", type=Path)
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--window", type=int, default=0, help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    if given.here:
        planned = planned_of(given.model, given.drafters[0], given.ctx, given.window or None)
        print(taken_bytes(given.model, planned))
        return 0
    rows, held = list[dict[str, str]](), list[bool]()
    for drafter in given.drafters:
        for window in (None, SHORT_WINDOW_TOKENS):
            planned = planned_of(given.model, drafter, given.ctx, window)
            found = taken_elsewhere(given.model, drafter, given.ctx, window)
            rows.append(row_of(drafter, planned, found))
            share = found / planned.num_bytes
            where = f"{drafter.name}, {planned.shape.ctx_tokens} tokens: taken / planned"
            held.append(verdict(f"{where} {share:.3f}", LEAST_SHARE <= share <= 1))
    give_table(rows, given.csv)
    return 0 if all(held) else 1


if __name__ == "__main__":
    sys.exit(main())
