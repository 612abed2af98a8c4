"""Known eviction policies, which the simulator compares with the engine's own, `ExpectedUse`."""

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from haversack.cache.policies import Keys, Policy, Scores
from haversack.cache.precision import HIGH, LOW, Levels


class Lru(Policy):
    """The expert used longest ago leaves first."""

    def scores(self, keys: Keys, level: int = HIGH) -> Scores:
        scores: Scores = self.last_use[:, keys].max(axis=0)
        return scores


class Lfu(Policy):
    """The expert used least often leaves first; of several, the one used longest ago."""

    def scores(self, keys: Keys, level: int = HIGH) -> Scores:
        latest = self.last_use[:, keys].max(axis=0)
        scores: Scores = self.uses[:, keys].sum(axis=0) + latest / (self.layers + 1)
        return scores


@dataclass(frozen=True)
class Weights:
    """The weights in HOBBIT's priority; `high` is that of uses in high precision."""

    recency: float = 0.3
    frequency: float = 0.2
    high: float = 0.1
    distance: float = 0.4

    def __post_init__(self) -> None:
        total = self.recency + self.frequency + self.high + self.distance
        if abs(total - 1) > 1e-9:
            raise ValueError(f"the weights of a priority sum to 1, not to {total}")


class Multidimensional(Policy):
    """HOBBIT's priority: recency, frequency, uses in high precision, and how soon the layer comes
    (arXiv 2411.01433, section 3.5). A use in high precision counts twice."""

    def __init__(self, num_rows: int, num_experts: int, weights: Weights | None = None) -> None:
        super().__init__(num_rows, num_experts)
        self._weights = weights or Weights()

    def scores(self, keys: Keys, level: int = HIGH) -> Scores:
        w = self._weights
        used: Scores = w.recency * self.last_pass[:, keys].max(axis=0)
        used += w.frequency * self.uses[:, keys].sum(axis=0) + w.high * self.uses[HIGH, keys]
        soon: Scores = 1 - (self.distance(keys) - 1) / self.num_rows
        return used / self.passes + w.distance * soon


class LeastCostlyUsed(Policy):
    """MoE-APEX's cost of a miss, divided by the layer's distance, with a bonus for the latest
    uses. A use in low precision costs less than one in high precision."""

    def scores(self, keys: Keys, level: int = HIGH) -> Scores:
        cost = self.uses[HIGH, keys] + self.low_cost * self.uses[LOW, keys]
        lately = self.used_lately(keys, HIGH) | self.used_lately(keys, LOW)
        worth = cost / self.passes + 0.5 * lately
        scores: Scores = worth / (self.distance(keys) - 0.9)
        return scores


class LeastStale(Policy):
    """SpecMD's rule, as its abstract describes it (arXiv 2602.03921): experts that this pass has
    not used leave first, and of them first those whose layer is over."""

    def scores(self, keys: Keys, level: int = HIGH) -> Scores:
        fresh = self.last_pass[:, keys].max(axis=0) == self.passes
        scores: Scores = 2 * self.num_rows * fresh - self.distance(keys)
        scores = scores + self.last_use[:, keys].max(axis=0) / 1e12
        return scores


class Arc(Policy):
    """ARC (Megiddo and Modha 2003), a cache for each layer. The first layers' caches are larger, as
    in Fate (arXiv 2502.12224, authors' code), because their experts are predicted worst."""

    _SHALLOW_ROWS = 4

    def __init__(self, num_rows: int, num_experts: int, num_slots: int) -> None:
        super().__init__(num_rows, num_experts)
        self._layers = [_ArcLayer(share) for share in self._shares(num_slots)]

    def _shares(self, num_slots: int) -> list[int]:
        shallow = min(self._SHALLOW_ROWS, self.num_rows)
        spare = num_slots - shallow * self.num_experts
        if spare < 0 or shallow == self.num_rows:
            starts = range(0, self.num_rows * self.num_experts, self.num_experts)
            return [min(self.num_experts, max(0, num_slots - start)) for start in starts]
        share = spare // (self.num_rows - shallow)
        return [self.num_experts] * shallow + [share] * (self.num_rows - shallow)

    def use(self, keys: Keys, levels: Levels | int = HIGH) -> None:
        super().use(keys, levels)
        for key in keys.tolist():
            self._layers[self.row].use(key)

    def leave(self, keys: Keys) -> None:
        for key in keys.tolist():
            self._layers[key // self.num_experts].leave(key)

    def first_to_go(self, keys: Keys, count: int, level: int = HIGH) -> npt.NDArray[np.intp]:
        """The layer that is furthest above its share loses an expert, as its own ARC chooses."""
        places = {key: place for place, key in enumerate(keys.tolist())}
        excess = np.array([len(layer) - layer.share for layer in self._layers])
        candidates = [[k for k in layer.in_order() if k in places] for layer in self._layers]
        known = {key for layer in candidates for key in layer}
        chosen = [place for key, place in places.items() if key not in known][:count]
        while len(chosen) < count:
            able = [row for row, left in enumerate(candidates) if left]
            row = max(able, key=lambda row: excess[row])
            chosen.append(places[candidates[row].pop(0)])
            excess[row] -= 1
        return np.array(chosen, np.intp)


class _ArcLayer:
    """One layer's lists: experts used once, experts used more than once, and the ghosts of both."""

    def __init__(self, share: int) -> None:
        self.share = share
        self._target = 0.0  # how many experts used once may stay
        self._once: OrderedDict[int, None] = OrderedDict()
        self._often: OrderedDict[int, None] = OrderedDict()
        self._once_ghosts: OrderedDict[int, None] = OrderedDict()
        self._often_ghosts: OrderedDict[int, None] = OrderedDict()

    def __len__(self) -> int:
        return len(self._once) + len(self._often)

    def use(self, key: int) -> None:
        ghosts = len(self._once_ghosts), len(self._often_ghosts)
        if key in self._once_ghosts:
            self._target = min(self.share, self._target + max(1, ghosts[1] / ghosts[0]))
        elif key in self._often_ghosts:
            self._target = max(0, self._target - max(1, ghosts[0] / ghosts[1]))
        lists = (self._once, self._often, self._once_ghosts, self._often_ghosts)
        seen = [key in one for one in lists]
        for one in lists:
            one.pop(key, None)
        (self._often if any(seen) else self._once)[key] = None

    def leave(self, key: int) -> None:
        for held, ghosts in (
            (self._once, self._once_ghosts),
            (self._often, self._often_ghosts),
        ):
            if key in held:
                del held[key]
                ghosts[key] = None
                if len(ghosts) > self.share:
                    ghosts.popitem(last=False)

    def in_order(self) -> list[int]:
        """Return the experts held, the first to leave first."""
        once, often = list(self._once), list(self._often)
        spare = max(0, len(once) - int(self._target))
        return once[:spare] + often + once[spare:]


class Belady(Policy):
    """The oracle: the expert that is used again last leaves first (Belady 1966). It must be given
    all uses."""

    def __init__(self, num_rows: int, num_experts: int, uses: Sequence[Keys]) -> None:
        super().__init__(num_rows, num_experts)
        self._next = np.full(num_rows * num_experts, np.inf)
        seen = np.full(num_rows * num_experts, np.inf)
        self._following: list[Any] = []
        for moment in range(len(uses) - 1, -1, -1):
            self._following.append(seen[uses[moment]])
            seen[uses[moment]] = moment

    def use(self, keys: Keys, levels: Levels | int = HIGH) -> None:
        super().use(keys, levels)
        self._next[keys] = self._following.pop()

    def scores(self, keys: Keys, level: int = HIGH) -> Scores:
        return -self._next[keys]
