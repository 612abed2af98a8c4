"""Measures of routing: how evenly routers load experts, how often they reuse them, how well later
layers' choices can be predicted.

A choice is an array (N, K) of expert ids, a row for each token, of one layer. Axis letters: N
tokens, K experts per token, E experts, C hidden size.
"""

from collections import OrderedDict
from itertools import pairwise
from pathlib import Path

import numpy as np
import numpy.typing as npt

from haversack.edge.replay import Choice, Trace

TRACES = Path(__file__).parents[1] / "traces"
CACHE_SHARES = (0.125, 0.25, 0.5)


def recorded_traces() -> list[Trace]:
    """Load the traces of real models that come with the project."""
    return [Trace.load(path) for path in sorted(TRACES.glob("*.npz"))]


# ----------------------------------------------------------------------- load
def expert_load(choice: Choice, num_experts: int) -> npt.NDArray[np.float64]:
    """Return each expert's load over its fair share: (E,), 1 everywhere when even."""
    return np.bincount(choice.ravel(), minlength=num_experts) * num_experts / choice.size


def load_entropy(load: npt.NDArray[np.float64]) -> float:
    """Return the entropy of the load over that of an even one, 0 to 1."""
    share = load[load > 0] / load.sum()
    return float(-(share * np.log(share)).sum() / np.log(len(load)))


# ---------------------------------------------------------------------- reuse
def step_reuse(choice: Choice) -> float:
    """Return the share of a token's experts that the token before it used as well."""
    shared = [len(np.intersect1d(now, before)) for before, now in pairwise(choice)]
    return float(np.sum(shared) / choice[1:].size)


def lru_hits(choice: Choice, capacity: int) -> int:
    """Return how many lookups hit in a cache of `capacity` experts that evicts the least recently
    used.

    Ids are looked up one after the other, and a miss always enters.
    """
    held: OrderedDict[int, None] = OrderedDict()
    hits = 0
    for expert in map(int, choice.ravel()):
        if expert in held:
            hits += 1
            held.move_to_end(expert)
        else:
            if len(held) == capacity:
                held.popitem(last=False)
            held[expert] = None
    return hits


def belady_hits(choice: Choice, capacity: int) -> int:
    """Return the same for the oracle, which evicts the expert that is used again last (Belady
    1966)."""
    ids = [int(expert) for expert in choice.ravel()]
    never = len(ids)
    next_use, seen = [never] * len(ids), dict[int, int]()
    for place in range(len(ids) - 1, -1, -1):
        next_use[place] = seen.get(ids[place], never)
        seen[ids[place]] = place
    held: dict[int, int] = {}  # expert: its next use
    hits = 0
    for place, expert in enumerate(ids):
        if expert in held:
            hits += 1
        elif len(held) == capacity:
            del held[max(held, key=lambda other: held[other])]
        held[expert] = next_use[place]
    return hits


def hit_rates(trace: Trace, share: float) -> tuple[float, float]:
    """Return LRU's and Belady's hit rates over all layers, each with a cache of `share` of its
    experts."""
    capacity = int(share * trace.num_experts)
    lookups = sum(choice.size for choice in trace.layers)
    lru = sum(lru_hits(choice, capacity) for choice in trace.layers)
    belady = sum(belady_hits(choice, capacity) for choice in trace.layers)
    return lru / lookups, belady / lookups


# ----------------------------------------------------------------- prediction
def prediction_recall(
    inputs: npt.NDArray[np.float32], router: npt.NDArray[np.float32], choice: Choice, extra: int
) -> float:
    """Return the share of a later layer's `choice` (N, K) that is among its K + `extra` likeliest
    experts, as predicted by its `router` (E, C) from an earlier router's `inputs` (N, C) (Fate,
    arXiv 2502.12224)."""
    likeliest = np.argsort(-(inputs @ router.T), axis=1)[:, : choice.shape[1] + extra]
    return float((choice[:, :, None] == likeliest[:, None, :]).any(axis=2).mean())
