"""Would routes of the text's own past start reads of a drafted span in time?

    python -m haversack.tools.routing.spans [MODEL] [--prompts PATH ...] [--sets NAME ...]
        [--tokens 192] [--per-set 4] [--least 3] [--csv FILE]

MODEL (by default the built-in one) goes on from the prompts with its own routing, which is
recorded. Wherever the last `--least` tokens or more also stand earlier in the text and went on
there with the token that came (a draft that is right), the experts that this token used at the
earlier place are the prediction. Slots for a share of the experts are replayed with the engine's
rule. A row says how many of such tokens' experts were not in slots, how many of these the
prediction names, and how many others it would have read in vain. "faster" is SIMULATED: a bound of
how much faster these tokens would be, if a drive reads one expert after the other and each takes as
long as so many layers compute, beside reads that the layer before starts for 70 % of the experts.
"""

import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

import numpy as np

from haversack import edge
from haversack.cache.policies import ExpectedUse
from haversack.cache.slots import NOWHERE, SlotTable
from haversack.tools.bench.speculation import NGRAM, opened, read_sets
from haversack.tools.command_line import give_table, prompts_parser, tool
from haversack.tools.routing.trace import Recorder

SHARES = (0.1, 0.25, 0.5)
READS = (0.25, 0.5, 1.0, 2.0, 4.0)  # of an expert, in layers that are computed meanwhile
_NAMED_BY_LAYER_BEFORE = 0.7  # of the experts to read: what the engine counts on such texts

Routes = Sequence[frozenset[int]]  # of each token: layer * experts + expert


@dataclass
class Found:
    """Counts of the tokens of spans: experts used, those not in slots, of these the predicted, and
    experts that are predicted, not in slots and not used."""

    tokens: int = 0
    used: int = 0
    missed: int = 0
    predicted: int = 0
    in_vain: int = 0
    by_layer: tuple[tuple[int, ...], ...] = ()  # experts not in slots, of each token

    def add(self, other: "Found") -> None:
        """Add the counts of another text."""
        for key, value in vars(other).items():
            setattr(self, key, getattr(self, key) + value)

    def faster(self, read: float) -> float:
        """Return how many times as fast the tokens are, where a read takes `read` layers."""
        named = self.predicted / max(1, self.missed)
        before = sum(layer_by_layer(each, read) for each in self.by_layer)
        return before / sum(all_at_once(each, read, named) for each in self.by_layer)


def layer_by_layer(missed: Sequence[int], read: float) -> float:
    """Return the time of a token, in layers, if most reads of a layer begin when the layer before
    does, and the others when its router has chosen."""
    now = drive = begun_before = 0.0
    for number in missed:
        ahead = _NAMED_BY_LAYER_BEFORE * number * read
        drive = max(drive, begun_before) + ahead
        if number:
            drive = max(drive, now) + number * read - ahead
        begun_before, now = now, max(now, drive) + 1
    return now


def all_at_once(missed: Sequence[int], read: float, named: float) -> float:
    """Return the time of a token, in layers, if the reads of the experts `named` begin with it."""
    now = drive = late = 0.0
    for number in missed:
        drive += named * number * read
        ready = drive + late
        if number and named < 1:
            ready = max(ready, now) + (1 - named) * number * read
            late += (1 - named) * number * read
        now = max(now, ready) + 1
    return now


@dataclass(frozen=True)
class Text:
    """Tokens, the first `num_given` of them a prompt, and the experts of each that was computed."""

    tokens: Sequence[int]
    routes: Routes
    num_given: int


def routes_of(recorder: Recorder, num_experts: int) -> list[frozenset[int]]:
    """Return the experts of each computed token, the prompt's first."""
    found = list[set[int]]()
    for noted, first in ((recorder.prefill, 0), (recorder.decode, None)):
        begin = len(found) if first is None else first
        for choice in noted:
            for step, layer, *ids in choice.rows.tolist():
                while len(found) <= begin + step:
                    found.append(set())
                found[begin + step].update(layer * num_experts + each for each in ids)
    return [frozenset(each) for each in found]


def earlier_place(tokens: Sequence[int], end: int, least: int) -> int | None:
    """Return where the longest end of `tokens[:end]`, of `least` tokens or more, stood before: the
    place of the token behind it, the latest if there are several."""
    best, longest = None, least - 1
    for place in range(least, end):
        length = 0
        while length < place and tokens[place - 1 - length] == tokens[end - 1 - length]:
            length += 1
        if length >= longest and length >= least:
            best, longest = place, length
    return best


def computed(table: SlotTable, used: frozenset[int], num_experts: int) -> set[int]:
    """Have a token's experts in slots, layer after layer. Return those that were not there."""
    missed = set[int]()
    for layer, keys in groupby(sorted(used), lambda key: key // num_experts):
        experts = np.array([key % num_experts for key in keys], np.int32)
        slots = table.find(layer, experts)
        held = slots[slots != NOWHERE]
        table.pin(held)
        table.use(layer, experts)
        lacking = experts[slots == NOWHERE]
        claimed = table.claim(layer, lacking)
        table.fill(claimed)
        table.unpin(held)
        table.unpin(claimed)
        missed.update(layer * num_experts + int(each) for each in lacking)
    return missed


def replayed(text: Text, table: SlotTable, num_experts: int, least: int) -> Found:
    """Return the counts of a text. The slots of `table` are empty."""
    found, num_layers = Found(), 1 + max(map(max, text.routes)) // num_experts
    for number, used in enumerate(text.routes):
        place = earlier_place(text.tokens, number, least) if number >= text.num_given else None
        is_span = place is not None and text.tokens[place] == text.tokens[number]
        named = text.routes[place] if place is not None else frozenset[int]()
        held = {key for key in named if table.holds(*divmod(key, num_experts))}
        missed = computed(table, used, num_experts)
        if is_span:
            found.tokens += 1
            found.used += len(used)
            found.missed += len(missed)
            found.predicted += len(missed & named)
            found.in_vain += len(named - held - used)
            counts = Counter(key // num_experts for key in missed)
            found.by_layer += (tuple(counts[layer] for layer in range(num_layers)),)
    return found


def recorded(model: edge.Model, prompt: str, num_tokens: int) -> Text:
    """Return the text that goes on from a prompt, and its routes."""
    layers = model.plan.geometry.layers
    recorder = Recorder(1 + max(each.layer for each in layers))
    given = model.tokenize(prompt)
    model.watch_routing(recorder)
    try:
        generation = model.generate(given, num_tokens, temperature=0)
        assert generation.text is not None
    finally:
        model.watch_routing(None)
    tokens = [*given, *generation.tokens]
    routes = routes_of(recorder, max(each.num_experts for each in layers))
    return Text(tokens[: len(routes)], routes, len(given))


def row_of(name: str, share: float, found: Found) -> Mapping[str, str]:
    """Return the row of a set."""
    part = 100 / max(1, found.used)
    return {
        "prompts": name,
        "slots": f"{share:.0%}",
        "tokens of spans": str(found.tokens),
        "not in slots": f"{found.missed * part:.1f}%",
        "of these predicted": f"{100 * found.predicted / max(1, found.missed):.0f}%",
        "read in vain": f"{found.in_vain * part:.1f}%",
        **{f"faster, read {read:g}": f"{found.faster(read):.3f}" for read in READS},
    }


@tool
def main(arguments: Sequence[str] | None) -> int:
    """Print the table; return 0."""
    parser = prompts_parser(__doc__, {"tokens": 192, "per-set": 4, "least": 3})
    parser.add_argument("model", type=Path, nargs="?", default=edge.builtin_model())
    given = parser.parse_args(arguments)
    rows = list[Mapping[str, str]]()
    with opened(given.model, 1.0, NGRAM) as model:
        model.speculate("off")
        layers = model.plan.geometry.layers
        num_layers, most = 1 + layers[-1].layer, max(each.num_experts for each in layers)
        total = sum(layer.num_experts for layer in layers)
        for name, prompts in read_sets(given.prompts, given.per_set, given.sets).items():
            texts = [recorded(model, prompt, given.tokens) for prompt in prompts]
            for share in SHARES:
                sums = Found()
                for text in texts:
                    policy = ExpectedUse(num_layers, most)
                    table = SlotTable(range(num_layers), most, int(share * total), policy)
                    sums.add(replayed(text, table, most, given.least))
                rows.append(row_of(name, share, sums))
    give_table(rows, given.csv)
    return 0


if __name__ == "__main__":
    sys.exit(main())
