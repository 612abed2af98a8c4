"""Hit rates of eviction policies on recorded routing, by the same table that the engine keeps.

    python -m haversack.tools.routing.simulate [TRACE.npz ...] [--csv FILE]

All layers share one cache, as in the engine. Without a trace, the four of the project are used.
"""

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from haversack.cache.policies import ExpectedUse, Keys, Policy
from haversack.cache.slots import NOWHERE, SlotTable
from haversack.edge.replay import Trace
from haversack.tools.command_line import give_table, tool
from haversack.tools.routing.measures import CACHE_SHARES, recorded_traces
from haversack.tools.routing.policies import (
    Arc,
    Belady,
    LeastCostlyUsed,
    LeastStale,
    Lfu,
    Lru,
    Multidimensional,
)

DEFAULT = "expected use"


def policies(trace: Trace, num_slots: int) -> dict[str, Callable[[], Policy]]:
    """Return every policy by its name, ready to be made for `trace`."""
    size = len(trace.layers), trace.num_experts
    return {
        "lru": lambda: Lru(*size),
        "lfu": lambda: Lfu(*size),
        "arc per layer": lambda: Arc(*size, num_slots),
        "multidimensional": lambda: Multidimensional(*size),
        "least costly used": lambda: LeastCostlyUsed(*size),
        "least stale": lambda: LeastStale(*size),
        DEFAULT: lambda: ExpectedUse(*size),
        "belady": lambda: Belady(*size, [_keys(trace, *event) for event in events(trace)]),
    }


def events(trace: Trace) -> Iterator[tuple[int, Keys]]:
    """Yield what the engine is asked for: layer after layer, step after step."""
    for step in range(len(trace.layers[0])):
        for layer, choice in enumerate(trace.layers):
            yield layer, choice[step].astype(np.int32)


def _keys(trace: Trace, layer: int, experts: Keys) -> Keys:
    return (layer * trace.num_experts + experts).astype(np.int32)


def missed(
    trace: Trace, num_slots: int, policy: Policy, num_spare: int = 0
) -> npt.NDArray[np.int64]:
    """Return how many lookups of each step of `trace` find no expert in a cache of `num_slots`,
    empty at first, which evicts `num_spare` more experts than it needs to."""
    table = SlotTable(range(len(trace.layers)), trace.num_experts, num_slots, policy, num_spare)
    misses = np.zeros(len(trace.layers[0]), np.int64)
    for moment, (layer, experts) in enumerate(events(trace)):
        slots = table.find(layer, experts)
        held = slots[slots != NOWHERE]
        table.pin(held)
        table.use(layer, experts)
        claimed = table.claim(layer, experts[slots == NOWHERE])
        table.fill(claimed)
        table.unpin(held)
        table.unpin(claimed)
        misses[moment // len(trace.layers)] += len(claimed)
    return misses


def hit_rate(trace: Trace, num_slots: int, policy: Policy, num_spare: int = 0) -> float:
    """Return the share of `trace`'s lookups that find their expert; all else as in `missed`."""
    lookups = sum(layer.size for layer in trace.layers)
    return 1 - int(missed(trace, num_slots, policy, num_spare).sum()) / lookups


def rates(trace: Trace, share: float) -> dict[str, float]:
    """Return every policy's hit rate with a cache of `share` of all experts, by name."""
    num_slots = int(share * trace.num_experts * len(trace.layers))
    made = policies(trace, num_slots)
    return {name: hit_rate(trace, num_slots, make()) for name, make in made.items()}


# -------------------------------------------------------------------- program
def rows(traces: Sequence[Trace]) -> list[dict[str, str]]:
    """Return a row for each trace and share of the experts: all hit rates in percent."""
    return [
        {"trace": trace.name, "cache": f"{100 * share:g}%"}
        | {name: f"{100 * rate:.1f}" for name, rate in rates(trace, share).items()}
        for trace in traces
        for share in CACHE_SHARES
    ]


@tool
def main(arguments: Sequence[str] | None) -> int:
    """Simulate what the command line asks for; the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("traces", type=Path, nargs="*", help="recorded traces (.npz)")
    parser.add_argument("--csv", type=Path, help="write the table there as well")
    given = parser.parse_args(arguments)
    table = rows([Trace.load(path) for path in given.traces] or recorded_traces())
    give_table(table, given.csv)
    return 0


if __name__ == "__main__":
    sys.exit(main())
