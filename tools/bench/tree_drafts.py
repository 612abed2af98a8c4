"""Would drafts that are trees pay, where a pass has 7 rows at most? A replay: speeds are SIMULATED.

    python -m haversack.tools.bench.tree_drafts DRAFTER [MODEL] [--prompts PATH ...]
        [--sets NAME ...] [--tokens 128] [--per-set 4] [--csv FILE]

MODEL (by default the built-in one) goes on from the prompts greedily. DRAFTER, which must have the
same vocabulary, says at each place of the texts which rank the token that came had among its own.
The beginnings of drafts, as ranks, are counted: the best tree of n rows holds the n beginnings that
came true most often, and a chain those of rank 1. A row has the tokens of a pass with each. With
the times of passes of the machines of `haversack.tools.bench.gate_replay` it has the most tokens a
second that any number of rows gives, in those without drafts. Experts' reads are left out.
"""

import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from haversack import edge
from haversack.devices.llama import MOST_ROWS
from haversack.edge.draft_model import DraftModel
from haversack.edge.drafter_plan import plan_drafter
from haversack.edge.sequence import Logits
from haversack.tools.bench.gate_replay import MACHINES, Machine
from haversack.tools.bench.speculation import NGRAM, OFF, opened, read_sets
from haversack.tools.command_line import give_table, prompts_parser, tool

MOST_DRAFTED = MOST_ROWS - 1

Ranks = Sequence[int]  # 1: the likeliest


def ranks_of(drafter: DraftModel, tokens: Sequence[int], num_given: int) -> list[int]:
    """Return the rank of each token behind the first `num_given` among the drafter's."""
    found = list[int]()
    for number in range(num_given, len(tokens)):
        token = tokens[number]

        def rank(logits: Logits, token: int = token) -> int:
            return 1 + int((logits > logits[token]).sum())

        found.append(
            drafter.choose(0, tokens[max(0, number - drafter.window_tokens + 1) : number], rank)
        )
    return found


def beginnings(texts: Sequence[Ranks]) -> tuple[Counter[Ranks], int]:
    """Return how often drafts that begin with these ranks came true, and at how many places."""
    found, num_places = Counter[Ranks](), 0
    for ranks in texts:
        for place in range(len(ranks) - MOST_DRAFTED + 1):
            num_places += 1
            for length in range(1, MOST_DRAFTED + 1):
                found[tuple(ranks[place : place + length])] += 1
    return found, num_places


def tokens_of(counts: Sequence[int], num_places: int) -> list[float]:
    """Return the tokens of a pass with 0 to 6 drafted rows, which came true so often."""
    return [1 + sum(counts[:rows]) / max(1, num_places) for rows in range(MOST_ROWS)]


def best_speed(machine: Machine, tokens: Sequence[float]) -> float:
    """Return the most tokens a second, in those without drafts."""
    return max(each / time_s for each, time_s in zip(tokens, machine.curve, strict=True))


def shapes(texts: Sequence[Ranks]) -> tuple[list[float], list[float]]:
    """Return the tokens of a pass with a chain, and with the best tree, by the drafted rows."""
    found, num_places = beginnings(texts)
    chain = [found[(1,) * length] for length in range(1, MOST_DRAFTED + 1)]
    tree = sorted(found.values(), reverse=True)[:MOST_DRAFTED]
    return tokens_of(chain, num_places), tokens_of(tree, num_places)


def rows_of(name: str, texts: Sequence[Ranks]) -> list[Mapping[str, str]]:
    """Return a row for each machine."""
    chain, tree = shapes(texts)
    return [
        {
            "simulated": machine.name,
            "prompts": name,
            "tokens, chain of 6": f"{chain[-1]:.2f}",
            "tokens, tree of 6": f"{tree[-1]:.2f}",
            "best chain": f"{best_speed(machine, chain):.3f}",
            "best tree": f"{best_speed(machine, tree):.3f}",
            "tree/chain": f"{best_speed(machine, tree) / best_speed(machine, chain):.3f}",
        }
        for machine in MACHINES
    ]


@tool
def main(arguments: Sequence[str] | None) -> int:
    """Print the table; return 0."""
    parser = prompts_parser(__doc__, {"tokens": 128, "per-set": 4})
    parser.add_argument("drafter", type=Path)
    parser.add_argument("model", type=Path, nargs="?", default=edge.builtin_model())
    given = parser.parse_args(arguments)
    rows = list[Mapping[str, str]]()
    with opened(given.model, None, NGRAM) as model:
        model.speculate(OFF)
        drafter = DraftModel(plan_drafter(given.drafter, model.plan.shape))
        try:
            for name, prompts in read_sets(given.prompts, given.per_set, given.sets).items():
                texts = list[Ranks]()
                for prompt in prompts:
                    begun = model.tokenize(prompt)
                    generation = model.generate(begun, given.tokens, temperature=0)
                    assert generation.text is not None
                    texts.append(ranks_of(drafter, [*begun, *generation.tokens], len(begun)))
                rows += rows_of(name, texts)
        finally:
            drafter.close()
    give_table(rows, given.csv)
    return 0


if __name__ == "__main__":
    sys.exit(main())
