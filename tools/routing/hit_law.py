"""Fit the law of misses that forecasts use to recorded routing, and say how wrong it is.

    python -m haversack.tools.routing.hit_law [TRACE.npz ...]

Each model in turn is left out of the fit and forecast by it. First uses of experts are no part of
the law: a run has each of them once, a short recording has many.
"""

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import numpy as np

from haversack.cache.policies import ExpectedUse
from haversack.edge.hits import miss_rate
from haversack.edge.replay import Trace
from haversack.offload.pool import spare_slots
from haversack.tools.command_line import print_table, tool
from haversack.tools.routing.measures import CACHE_SHARES, recorded_traces
from haversack.tools.routing.simulate import missed

Law = tuple[float, float]

_A, _B = np.arange(0.2, 0.8, 0.002), np.arange(0.4, 1.2, 0.01)
_FULL = 0.005  # fewer misses than this say nothing: all that the recording uses fits


@dataclass(frozen=True)
class Point:
    """A model's misses, of uses of experts that were used before, with slots for `share`."""

    share: float
    held: float
    misses: float

    def error(self, law: Law) -> float:
        """Return by how much the law says too many misses."""
        return miss_rate(self.share, self.held, law) - self.misses


def points_of(trace: Trace, shares: Sequence[float] = CACHE_SHARES) -> list[Point]:
    """Return what was recorded, for each of `shares` where anything misses."""
    num_layers, used = len(trace.layers), trace.layers[0].shape[1]
    uses = sum(layer.size for layer in trace.layers)
    first_uses = sum(len(np.unique(layer)) for layer in trace.layers)
    found = list[Point]()
    for share in shares:
        num_slots = int(share * trace.num_experts * num_layers)
        policy = ExpectedUse(num_layers, trace.num_experts)
        misses = int(missed(trace, num_slots, policy, spare_slots(num_slots)).sum())
        rate = (misses - first_uses) / (uses - first_uses)
        if rate > _FULL:
            found.append(Point(share, num_slots / (used * num_layers), rate))
    return found


def fitted(models: Sequence[Sequence[Point]]) -> Law:
    """Return the law with the least mean square error, every model counting as much."""

    def badness(law: Law) -> float:
        return sum(float(np.mean([p.error(law) ** 2 for p in points])) for points in models)

    laws = [(float(a), float(b)) for a, b in product(_A[::10], _B[::4])]
    a, b = min(laws, key=badness)
    near_a, near_b = np.arange(a - 0.02, a + 0.02, 0.002), np.arange(b - 0.04, b + 0.04, 0.01)
    return min(((float(x), float(y)) for x, y in product(near_a, near_b)), key=badness)


def errors_left_out(models: Mapping[str, Sequence[Point]]) -> dict[str, list[float]]:
    """Return the errors for each model of the law that was fitted to the others."""
    return {
        name: [
            point.error(fitted([other for key, other in models.items() if key != name]))
            for point in points
        ]
        for name, points in models.items()
    }


@tool
def main(arguments: Sequence[str] | None) -> int:
    """Fit what the command line asks for; the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("traces", type=Path, nargs="*", help="recorded traces (.npz)")
    given = parser.parse_args(arguments)
    traces = [Trace.load(path) for path in given.traces] or recorded_traces()
    models = {trace.name: points_of(trace) for trace in traces}
    a, b = fitted(list(models.values()))
    print(f"misses = (1 - share) * exp(-{a:.3f} * held ** {b:.2f})")
    print_table(
        [
            {
                "left out": name,
                "slots for": " ".join(f"{point.share:.1%}" for point in models[name]),
                "misses, %": " ".join(f"{100 * point.misses:.1f}" for point in models[name]),
                "error, points": " ".join(f"{100 * error:+.1f}" for error in errors),
            }
            for name, errors in errors_left_out(models).items()
        ]
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
