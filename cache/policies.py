"""Policies: which expert leaves its slot when another needs it, in numbers and without I/O.

A key names an expert of a table: the row of its layer times the number of experts in a layer, plus
its id. A policy is told which experts are used, layer after layer, and orders those that could
leave. A pass is one walk through the layers, for a token or for a batch.

A use has the level at which the expert was wanted (`cache/precision.py`), HIGH where no other is
said. Axis of the counts: the level of the use, HIGH and LOW; a use that may be skipped counts as
LOW, because a LOW copy serves it.
"""

import numpy as np
import numpy.typing as npt

from haversack.cache.precision import HIGH, LOW, Levels

Keys = npt.NDArray[np.int32]
Slots = npt.NDArray[np.int32]
Scores = npt.NDArray[np.float64]


# What `Policy.clock` holds: the number of the pass under way, the row of the layer used last, how
# many layers were used so far, and the unit that `ExpectedUse` counts in.
_PASSES, _ROW, _LAYERS, _UNIT = range(4)


class Policy:
    """What all policies know: when and how often each expert was used, and how far away its layer
    is.

    Subclasses score the experts' copies of one level. Those with the lowest scores leave first; of
    equal scores the lowest key does. `low_cost` is a LOW copy's part of a HIGH one's bytes.
    The engine keeps the counts of `ExpectedUse` in C++ (offload/native/slots.cpp).
    """

    def __init__(self, num_rows: int, num_experts: int, low_cost: float = 0.0) -> None:
        self.num_rows, self.num_experts, self.low_cost = num_rows, num_experts, low_cost
        num_keys = num_rows * num_experts
        self.row_of = np.arange(num_keys) // num_experts
        self.clock = np.array([1.0, 0.0, 0.0, 1.0])
        self.uses = np.zeros((2, num_keys))  # counts survive eviction
        self.last_pass = np.zeros((2, num_keys))  # in which an expert was used last; 0: never
        self.last_use = np.zeros((2, num_keys))  # the same by a clock that counts layers

    def use(self, keys: Keys, levels: Levels | int = HIGH) -> None:
        """Note that the experts `keys`, all of one layer, are used now and wanted at `levels`, with
        a slot or without."""
        row = int(keys[0]) // self.num_experts
        self.clock[_PASSES] += row <= self.row and self.layers > 0
        self.clock[_ROW] = row
        self.clock[_LAYERS] += 1
        low = np.broadcast_to(levels, keys.shape) != HIGH
        self.count(HIGH, keys[~low])
        self.count(LOW, keys[low])

    def count(self, level: int, keys: Keys) -> None:
        """Count the uses of `keys` that want `level`."""
        self.uses[level, keys] += 1
        self.last_pass[level, keys] = self.passes
        self.last_use[level, keys] = self.layers

    @property
    def passes(self) -> int:
        """The number of the pass under way."""
        return int(self.clock[_PASSES])

    @property
    def row(self) -> int:
        """The row of the layer used last."""
        return int(self.clock[_ROW])

    @property
    def layers(self) -> int:
        """How many layers were used so far, over all passes."""
        return int(self.clock[_LAYERS])

    def leave(self, keys: Keys) -> None:
        """Note that the experts `keys` were evicted."""

    def first_to_go(self, keys: Keys, count: int, level: int = HIGH) -> npt.NDArray[np.intp]:
        """Return the positions in `keys` of the `count` experts whose copies of `level` leave
        first, in that order."""
        scores = self.scores(keys, level)
        some = np.arange(len(keys))
        if count < len(keys):  # a token needs a few slots of thousands, so not all are sorted
            bound = np.partition(scores, count)[count]
            some = np.flatnonzero(scores <= bound)
        order = np.lexsort((keys[some], scores[some]))[:count]
        return some[order]

    def scores(self, keys: Keys, level: int = HIGH) -> Scores:
        """Return the score of each expert's copy of `level`. Scores of both levels compare."""
        raise NotImplementedError

    def distance(self, keys: Keys) -> npt.NDArray[np.int64]:
        """Return how many layers after the one used last the layer of each expert comes: 1 to
        all."""
        distance: npt.NDArray[np.int64] = (self.row_of[keys] - self.row - 1) % self.num_rows + 1
        return distance

    def used_lately(self, keys: Keys, level: int = HIGH) -> npt.NDArray[np.bool_]:
        """Return whether each expert was used when its layer came last, and wanted at `level`."""
        latest = self.passes - (self.row_of[keys] > self.row)
        lately: npt.NDArray[np.bool_] = self.last_pass[level, keys] == latest
        return lately


class ExpectedUse(Policy):
    """The copy that gains least from its bytes leaves first. The gain is the chance that its layer
    chooses the expert when it comes next, divided by the time until then.

    The chance is the share of passes that used the expert, with older passes counting less. It is
    higher if the expert was used when its layer came last, and a little higher the later that was.
    Over a loop that is longer than the cache, this rule keeps a stable choice of experts, where
    `Lru` never hits.

    A LOW copy saves LOW reads alone; for each of its bytes it gains as much as a HIGH copy for HIGH
    reads. A HIGH copy saves LOW reads as well. They count half-way between their bytes and those of
    a HIGH read: on recorded models less was read so than with either.
    """

    HALF_LIFE = 16  # passes; this and the values below were fitted on four recorded models
    LATELY = 0.3
    RECENCY = 0.05

    def __init__(self, num_rows: int, num_experts: int, low_cost: float = 0.0) -> None:
        super().__init__(num_rows, num_experts, low_cost)
        # uses, in units that grow from pass to pass, so that no older use must be touched
        self.faded = np.zeros((2, num_rows * num_experts))

    def use(self, keys: Keys, levels: Levels | int = HIGH) -> None:
        if int(keys[0]) // self.num_experts <= self.row and self.layers > 0:  # a pass begins
            self.clock[_UNIT] *= 2 ** (1 / self.HALF_LIFE)
            if self.clock[_UNIT] > 1e100:
                self.faded /= self.clock[_UNIT]
                self.clock[_UNIT] = 1.0
        super().use(keys, levels)

    def count(self, level: int, keys: Keys) -> None:
        super().count(level, keys)
        self.faded[level, keys] += self.clock[_UNIT]

    def scores(self, keys: Keys, level: int = HIGH) -> Scores:
        chance = self._chance(keys, level)
        if level == HIGH and self.low_cost:
            chance += (1 + self.low_cost) / 2 * self._chance(keys, LOW)
        scores: Scores = chance / np.sqrt(self.distance(keys))
        return scores

    def rates(self, keys: Keys) -> Scores:
        """Return how often each expert is used in a pass, at whatever level: of all passes and of
        the latest ones."""
        uses, faded = self.uses[:, keys].sum(axis=0), self.faded[:, keys].sum(axis=0)
        rates: Scores = uses / self.passes + faded / (self.HALF_LIFE * self.clock[_UNIT])
        return rates

    def _chance(self, keys: Keys, level: int) -> Scores:
        """Return the chance that each expert is wanted at `level` when its layer comes next."""
        chance: Scores = self.faded[level, keys] / (self.HALF_LIFE * self.clock[_UNIT])
        chance += self.LATELY * self.used_lately(keys, level)
        chance += self.RECENCY * self.last_use[level, keys] / (self.layers + 1)
        return chance
