"""What mixed precision saves on recorded routing: bytes read beside exact, by thresholds and rule.

    python -m haversack.tools.routing.precision [TRACE.npz ...] [-t 0.6 0.95] [--csv FILE]

The engine's rule gives each expert its level from the recorded router weights, and its books keep
the copies. Steps before the 33rd fill the slots and do not count. A trace without weights says only
what exact reading costs. `low` is the bytes of a LOW copy in percent of a HIGH one; `uses` are in
percent of all, `weight` is the share of the routers' weight that LOW copies and skipped experts
had. The last thresholds are those of `balanced` and `fast`, fitted to the trace. The columns of the
rules are bytes read, in percent of what exact reads with the default rule; `refined` is the same
where a HIGH copy is made from a resident LOW one by reading the rest alone.
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from haversack.cache.levels import LevelledSlots, PoolBytes
from haversack.cache.policies import ExpectedUse, Keys, Policy, Scores
from haversack.cache.precision import HIGH, LOW, SKIP, Levels, Thresholds, fit, levels
from haversack.cache.slots import NOWHERE
from haversack.edge.fidelity import BALANCED, FAST, Fidelity
from haversack.edge.replay import Trace
from haversack.offload.pool import spare_slots
from haversack.tools.command_line import give_table, tool
from haversack.tools.routing.measures import recorded_traces
from haversack.tools.routing.policies import LeastCostlyUsed, Lfu, Lru, Multidimensional

WARM_STEPS = 32
HIGH_BYTES = 100  # of a slot; that of a LOW copy is then in percent
LOW_PERCENTS = (55, 35)
EXACT = Thresholds()
THRESHOLDS = (
    Thresholds(0.7),
    Thresholds(0.6, 0.95),
    Thresholds(0.5, 0.9),
    Thresholds(0.4, 0.8),
)
DEFAULT = "expected use"


class LevelBlind(ExpectedUse):
    """`ExpectedUse` as it is without levels: all uses and all copies count alike."""

    def use(self, keys: Keys, levels: Levels | int = HIGH) -> None:
        super().use(keys)

    def scores(self, keys: Keys, level: int = HIGH) -> Scores:
        return super().scores(keys)


def policies(trace: Trace, low_cost: float) -> dict[str, Callable[[], Policy]]:
    """Return every policy by its name, ready to be made for `trace`."""
    size = len(trace.layers), trace.num_experts
    return {
        "lru": lambda: Lru(*size),
        "lfu": lambda: Lfu(*size),
        "multidimensional": lambda: Multidimensional(*size),
        "least costly used": lambda: LeastCostlyUsed(*size, low_cost),
        "level-blind": lambda: LevelBlind(*size),
        DEFAULT: lambda: ExpectedUse(*size, low_cost),
    }


@dataclass
class Tally:
    """What a replay took: uses and router weight by the level of the copy used, and the bytes read.
    `refined_bytes` are those where a LOW copy that is there is refined."""

    uses: list[int] = field(default_factory=lambda: [0, 0, 0])
    weight: list[float] = field(default_factory=lambda: [0.0, 0.0, 0.0])
    read_bytes: int = 0
    refined_bytes: int = 0
    num_moves: int = 0

    def use_percent(self, level: int) -> float:
        return 100 * self.uses[level] / sum(self.uses)

    def weight_percent(self, level: int) -> float:
        return 100 * self.weight[level] / sum(self.weight)


class Replayed:
    """A trace's passes through slots of both levels, as the engine leases them."""

    def __init__(self, trace: Trace, cache_share: float, low_percent: int, policy: Policy) -> None:
        self._trace = trace
        num_slots = int(cache_share * trace.num_experts * len(trace.layers))
        least = min(trace.num_experts, 2 * trace.num_experts_per_tok)
        pool = PoolBytes(num_slots * HIGH_BYTES, (HIGH_BYTES, low_percent), (least, least))
        rows = range(len(trace.layers))
        self.slots = LevelledSlots(rows, trace.num_experts, pool, policy, spare_slots(num_slots))
        self.tally = Tally()

    def run(self, thresholds: Thresholds, warm_steps: int = WARM_STEPS) -> Tally:
        """Replay all steps. Return what those after `warm_steps` took."""
        wanted = self._wanted(thresholds)
        for step in range(self._trace.num_steps):
            if step == warm_steps:
                self.tally = Tally()
            for layer, choice in enumerate(self._trace.layers):
                self._use(layer, choice[step].astype(np.int32), wanted[layer][step], step)
            self.tally.num_moves += len(self.slots.balance())
        return self.tally

    def _wanted(self, thresholds: Thresholds) -> list[Levels]:
        if self._trace.weights is None:
            return [np.full(choice.shape, HIGH, np.int32) for choice in self._trace.layers]
        return [levels(weights, thresholds) for weights in self._trace.weights]

    def _use(self, layer: int, experts: Keys, wanted: Levels, step: int) -> None:
        slots = self.slots
        found, places = slots.find(layer, experts, wanted)
        there = places != NOWHERE
        held = [(level, places[there & (found == level)]) for level in (HIGH, LOW)]
        for level, some in held:
            slots.tables[level].pin(some)
        slots.use(layer, experts, wanted)
        used = np.where(there, found, wanted)
        used[~there] = slots.read_levels(wanted[~there])
        for level in (HIGH, LOW):
            self._read(layer, experts[~there & (used == level)], level)
        for level, some in held:
            slots.tables[level].unpin(some)
        weights = self._trace.weights
        for level in (HIGH, LOW, SKIP):
            self.tally.uses[level] += int((used == level).sum())
            if weights is not None:
                self.tally.weight[level] += float(weights[layer][step][used == level].sum())

    def _read(self, layer: int, experts: Keys, level: int) -> None:
        slots, tally = self.slots, self.tally
        if not len(experts):
            return
        num_coarse = int((slots.tables[LOW].find(layer, experts) != NOWHERE).sum())
        num_bytes = len(experts) * slots.pool.slot[level]
        tally.read_bytes += num_bytes
        tally.refined_bytes += num_bytes - num_coarse * slots.pool.slot[LOW]
        claimed = slots.claim(layer, experts, level)
        slots.fill(level, claimed)
        slots.tables[level].unpin(claimed)


def replayed(
    trace: Trace, cache_share: float, low_percent: int, policy: Policy, thresholds: Thresholds
) -> Tally:
    """Return what `trace` takes with slots for `cache_share` of all experts' bytes."""
    return Replayed(trace, cache_share, low_percent, policy).run(thresholds)


# -------------------------------------------------------------------- program
def rows(
    traces: Sequence[Trace], shares: Sequence[float], thresholds: Sequence[Thresholds]
) -> list[dict[str, str]]:
    """Return a row for each trace, share of the experts' bytes, thresholds and size of LOW copies;
    the first of each trace and share is exact."""
    return [
        row
        for trace in traces
        for share in shares
        for row in _rows_of(trace, share, thresholds if trace.weights else ())
    ]


def _rows_of(trace: Trace, share: float, thresholds: Sequence[Thresholds]) -> list[dict[str, str]]:
    cells = [(EXACT, LOW_PERCENTS[0])]
    fitted = _fitted(trace) if thresholds else []
    cells += [(one, percent) for one in [*thresholds, *fitted] for percent in LOW_PERCENTS]
    table: list[dict[str, str]] = []
    exact_bytes = 0
    for one, low_percent in cells:
        made = policies(trace, low_percent / 100)
        tallies = {
            name: replayed(trace, share, low_percent, make(), one) for name, make in made.items()
        }
        default = tallies[DEFAULT]
        exact_bytes = exact_bytes or default.read_bytes
        percent = {name: 100 * tally.read_bytes / exact_bytes for name, tally in tallies.items()}
        percent["refined"] = 100 * default.refined_bytes / exact_bytes
        table.append(
            {"trace": trace.name, "cache": f"{100 * share:g}%"}
            | {"T1": f"{one.low:.3g}", "T2": f"{one.skip:.3g}", "low": f"{low_percent}"}
            | {"uses low": f"{default.use_percent(LOW):.1f}"}
            | {"uses skipped": f"{default.use_percent(SKIP):.1f}"}
            | {"weight low": f"{default.weight_percent(LOW):.1f}" if trace.weights else ""}
            | {"weight skipped": f"{default.weight_percent(SKIP):.1f}" if trace.weights else ""}
            | {name: f"{value:.1f}" for name, value in percent.items()}
        )
    return table


def _fitted(trace: Trace) -> list[Thresholds]:
    """Return the thresholds that `balanced` and `fast` have after a calibration on the trace."""
    assert trace.weights is not None, "a trace with weights"
    weights = np.concatenate(trace.weights)
    shares = [Fidelity(mode).shares for mode in (BALANCED, FAST)]
    return [fit(weights, share.low, share.skip) for share in shares]


@tool
def main(arguments: Sequence[str] | None) -> int:
    """Simulate what the command line asks for; the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("traces", type=Path, nargs="*", help="recorded traces (.npz)")
    parser.add_argument(
        "--cache", type=float, action="append", help="share of the experts' bytes; 0.25 by default"
    )
    parser.add_argument(
        "-t",
        type=float,
        nargs=2,
        action="append",
        metavar=("T1", "T2"),
        dest="thresholds",
        help="scores above T1 are wanted LOW, above T2 skipped; four pairs by default",
    )
    parser.add_argument("--csv", type=Path, help="write the table there as well")
    given = parser.parse_args(arguments)
    traces = [Trace.load(path) for path in given.traces] or recorded_traces()
    thresholds = [Thresholds(*pair) for pair in given.thresholds or ()] or THRESHOLDS
    table = rows(traces, given.cache or [0.25], thresholds)
    give_table(table, given.csv)
    return 0


if __name__ == "__main__":
    sys.exit(main())
