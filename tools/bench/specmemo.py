"""How much speed does speculation keep in less memory, and is what it takes what was planned?

    python -m haversack.tools.bench.specmemo [MODEL] [--drafter ngram|DRAFT.gguf ...]
        [--prompts PATH ...] [--sets NAME ...] [--ctx 2048] [--tokens 128] [--rounds 5]
        [--per-set 4] [--csv FILE]

Each drafter is planned without a limit, and with `--speculate-memory` of 100, 70, 50, 35 and 25 %
of what it takes then: its weights, its context, tables, and what needs no model. Where the model
that drafts takes more even with the least window, what needs no model drafts alone. A model is
loaded for each budget; by turns they continue every prompt greedily, as
`haversack.tools.bench.speculation` does. What is planned is taken in a process of its own, as
`haversack.tools.bench.drafter_memory` does. Bounds: at 35 % at least 0.95 of the tokens a second at
100 % are kept, medians of the rounds, and what is taken is 0.95 to 1 of what was planned.
"""

import argparse
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from statistics import median

from haversack import edge
from haversack.devices.errors import BudgetError
from haversack.devices.units import format_bytes
from haversack.edge.draft_sizes import WHOLE
from haversack.edge.drafter_plan import Drafting, plan_drafting
from haversack.edge.planner import with_drafts
from haversack.tools.bench.drafter_memory import LEAST_SHARE, taken_elsewhere
from haversack.tools.bench.speculation import AUTO, NGRAM, Run, read_sets, run
from haversack.tools.command_line import give_table, prompts_parser, tool, verdict

SHARES = (1.0, 0.7, 0.5, 0.35, 0.25)
JUDGED_SHARE, LEAST_KEPT = 0.35, 0.95

Texts = Sequence[str]
Runs = dict[float, list[Run]]  # by the share of the memory


def drafting_in(drafter: Path | None, model: edge.Plan, most_bytes: int | None) -> Drafting:
    """Return what drafts for texts of the model within `most_bytes`: without the drafter where it
    does not fit."""
    try:
        return plan_drafting(drafter, model.shape, WHOLE, most_bytes)
    except BudgetError:
        if drafter is None:
            raise
        return plan_drafting(None, model.shape, WHOLE, most_bytes)


def measured(models: Mapping[float, edge.Model], prompts: Texts, given: argparse.Namespace) -> Runs:
    """Return the runs of each share, by turns. A first round does not count. Raises RuntimeError
    for a text that differs."""
    found: Runs = {share: [] for share in models}
    for number in range(given.rounds + 1):
        for share in list(models)[:: -1 if number % 2 else 1]:
            drafter = models[share].plan.drafter
            asked = AUTO if drafter is None else str(drafter.path)
            found[share].append(run(models[share], asked, prompts, given.tokens))
    if len({tuple(each.texts) for runs in found.values() for each in runs}) > 1:
        raise RuntimeError("with less memory for drafts the text is another one: a bug")
    return {share: runs[1:] for share, runs in found.items()}


def kept_of(runs: Runs, share: float) -> float:
    """Return the tokens a second of a share beside those of the whole, medians."""
    return median(each.tok_s for each in runs[share]) / median(each.tok_s for each in runs[1.0])


class Budgets:
    """What drafts in each share of the memory that it takes without a limit."""

    def __init__(self, model: edge.Plan, drafter: Path | None) -> None:
        self.model = model
        whole_bytes = drafting_in(drafter, model, None).num_bytes(model.shape)
        self.most_bytes = {share: int(share * whole_bytes) for share in SHARES}
        self.drafting = {
            share: drafting_in(drafter, model, most) for share, most in self.most_bytes.items()
        }

    def opened(self, share: float) -> edge.Model:
        """Return the model with what drafts in a share."""
        drafter, most_bytes = self.drafting[share].drafter, self.most_bytes[share]
        path = None if drafter is None else drafter.path
        options = edge.LoadOptions(warm_start=False, speculate=AUTO if path is None else str(path))
        return edge.load(with_drafts(self.model, path, most_bytes=most_bytes), options=options)

    def taken_share(self, share: float) -> float:
        """Return how much of what is planned is taken."""
        drafting = self.drafting[share]
        found = taken_elsewhere(self.model.path, drafting, self.model.shape)
        return found / drafting.num_bytes(self.model.shape)

    def row(self, share: float) -> dict[str, str]:
        """Return what is planned for a share."""
        drafting, shape = self.drafting[share], self.model.shape
        drafter, sizes = drafting.drafter, drafting.sizes
        return {
            "share": f"{share:.0%}",
            "drafter": "none" if drafter is None else drafter.path.name,
            "window": "" if drafter is None else str(drafter.shape.ctx_tokens),
            "pairs": "" if drafter is None else format_bytes(sizes.pair_bytes),
            "table": format_bytes(sizes.table_bytes),
            "searched tokens": str(sizes.tokens_of(shape)),
            "planned": format_bytes(drafting.num_bytes(shape)),
        }


def judged(
    title: str, budgets: Budgets, sets: Mapping[str, Texts], given: argparse.Namespace
) -> Iterator[tuple[dict[str, str], list[bool]]]:
    """Yield the row of each share, and whether its bounds hold."""
    with ExitStack() as open_models:
        models = {share: open_models.enter_context(budgets.opened(share)) for share in SHARES}
        found = {name: measured(models, prompts, given) for name, prompts in sets.items()}
    for share in SHARES:
        taken, where, held = budgets.taken_share(share), f"{title}, {share:.0%}", list[bool]()
        held.append(verdict(f"{where}: taken / planned {taken:.3f}", LEAST_SHARE <= taken <= 1))
        kept = {name: kept_of(runs, share) for name, runs in found.items()}
        if share == JUDGED_SHARE:
            held += [
                verdict(f"{where}, {name}: {each:.3f} of the speed is kept", each >= LEAST_KEPT)
                for name, each in kept.items()
            ]
        shown = {name: f"{each:.3f}" for name, each in kept.items()}
        yield {"of": title, **budgets.row(share), "taken/planned": f"{taken:.3f}", **shown}, held


@tool
def main(arguments: Sequence[str] | None) -> int:
    """Return 0 if the bounds hold."""
    parser = prompts_parser(__doc__, {"ctx": 2048, "tokens": 128, "rounds": 5, "per-set": 4})
    parser.add_argument("model", type=Path, nargs="?", default=edge.builtin_model())
    parser.add_argument("--drafter", action="append", default=[], metavar="DRAFTER")
    given = parser.parse_args(arguments)
    sets = read_sets(given.prompts, given.per_set, given.sets)
    planned, rows, held = edge.plan(given.model, ram="1TiB", ctx=given.ctx), [], list[bool]()
    for drafter in given.drafter or [NGRAM]:
        path = None if drafter == NGRAM else Path(drafter)
        title = f"{given.model.name}, {Path(drafter).name}"
        for row, holds in judged(title, Budgets(planned, path), sets, given):
            rows.append(row)
            held += holds
    give_table(rows, given.csv)
    return 0 if all(held) else 1


if __name__ == "__main__":
    sys.exit(main())
