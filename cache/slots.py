"""The slot table: which expert of which layer lies in which slot of a pool.

A slot is EMPTY, LOADING (it has an owner whose bytes are being read) or READY. Only a READY slot
may be multiplied. A pinned slot is never given to another expert. The table holds integers only:
the code that reads the bytes tells the table when they are there.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from haversack.cache.policies import ExpectedUse, Keys, Policy, Scores, Slots
from haversack.cache.precision import HIGH, Levels

EMPTY, LOADING, READY = 0, 1, 2
NOWHERE = -1


class SlotTable:
    """Which experts of some layers lie in `num_slots` slots.

    `layers` are the numbers of the layers in the order they run; each has `num_experts` experts.
    `policy` says which expert leaves when the slots are full. It is asked for `num_spare` experts
    more than are needed, because asking for a few costs as much as for one, and every layer of
    every token asks. All copies in the table are of one `level`. Not thread-safe: one thread keeps
    the table, though others may move the bytes.
    """

    def __init__(
        self,
        layers: Sequence[int],
        num_experts: int,
        num_slots: int,
        policy: Policy | None = None,
        num_spare: int = 0,
        level: int = HIGH,
    ) -> None:
        self.num_slots, self._num_spare, self.level = num_slots, num_spare, level
        self._num_experts = num_experts
        self._row = {layer: row for row, layer in enumerate(layers)}
        self._slot_of = np.full((len(layers), num_experts), NOWHERE, np.int32)
        self._owner = np.full(num_slots, NOWHERE, np.int32)  # row * num_experts + expert
        self._state = np.full(num_slots, EMPTY, np.uint8)
        self._pins = np.zeros(num_slots, np.int32)
        self.policy = policy or ExpectedUse(len(layers), num_experts)

    def find(self, layer: int, experts: npt.NDArray[np.integer]) -> Slots:
        """Return the slot of each expert of `layer`, NOWHERE for those that have none."""
        slots: Slots = self._slot_of[self._row[layer], experts]
        return slots

    def holds(self, layer: int, expert: int) -> bool:
        """Return whether one expert of `layer` has a slot."""
        return bool(self._slot_of[self._row[layer], expert] != NOWHERE)

    def is_ready(self, slots: Slots) -> npt.NDArray[np.bool_]:
        """Return of each slot whether it is READY; NOWHERE is not."""
        ready: npt.NDArray[np.bool_] = (slots != NOWHERE) & (self._state[slots] == READY)
        return ready

    def is_pinned(self, slots: Slots) -> npt.NDArray[np.bool_]:
        """Return of each slot whether it is pinned."""
        pinned: npt.NDArray[np.bool_] = self._pins[slots] > 0
        return pinned

    def use(
        self, layer: int, experts: npt.NDArray[np.integer], wanted: Levels | int = HIGH
    ) -> None:
        """Note that `experts` of `layer` are used now and `wanted` at these levels, those with a
        slot and those without."""
        self.policy.use(self._keys(layer, experts), wanted)

    def _keys(self, layer: int, experts: npt.NDArray[np.integer]) -> Keys:
        return (self._row[layer] * self._num_experts + experts).astype(np.int32)

    def pin(self, slots: Slots) -> None:
        """Keep the experts in `slots` until they are unpinned as often."""
        self._pins[slots] += 1

    def unpin(self, slots: Slots) -> None:
        """Undo one `pin` of each slot."""
        self._pins[slots] -= 1

    @property
    def num_unpinned(self) -> int:
        """Return how many slots could be claimed or borrowed now."""
        return int((self._pins == 0).sum())

    @property
    def num_empty(self) -> int:
        """Return how many slots could be claimed without an eviction."""
        return len(self._empty())

    def claim(self, layer: int, experts: npt.NDArray[np.integer]) -> Slots:
        """Give each of `experts` (distinct, without a slot) a slot, which is LOADING and pinned.

        Evicts the experts that the policy names. There must be that many unpinned slots.
        """
        slots = self.borrow(len(experts))
        self.adopt(slots, self._keys(layer, experts))
        return slots

    def adopt(self, slots: Slots, keys: Keys) -> None:
        """Note that these borrowed slots are those of experts `keys` that have none. They are
        LOADING."""
        self._slot_of.reshape(-1)[keys] = slots
        self._owner[slots] = keys
        self._state[slots] = LOADING

    def fill(self, slots: Slots) -> None:
        """Note that the bytes of the experts in these LOADING slots are all there."""
        assert (self._state[slots] == LOADING).all(), "only a loading slot can become ready"
        self._state[slots] = READY

    def drop(self, slots: Slots) -> None:
        """Empty `slots`: their experts have no slot any more. Pins stay."""
        owners = self._owner[slots]
        owned = owners[owners != NOWHERE]
        self.policy.leave(owned)
        self._slot_of.reshape(-1)[owned] = NOWHERE
        self._owner[slots] = NOWHERE
        self._state[slots] = EMPTY

    def drop_ready(self, keys: Keys) -> None:
        """Empty the READY slots of the experts `keys`."""
        slots = self._slot_of.reshape(-1)[keys]
        slots = slots[slots != NOWHERE]
        self.drop(slots[self._state[slots] == READY])

    def borrow(self, count: int) -> Slots:
        """Return `count` slots, emptied and pinned, for bytes that will not stay. Slots that are
        empty already are taken first. `unpin` gives the slots back."""
        slots = self._empty()
        if len(slots) < count:
            evicted = self._evict(count - len(slots), self._num_spare)
            slots = np.concatenate([slots, evicted])
        slots = slots[:count]
        self.pin(slots)
        return slots

    def _empty(self) -> Slots:
        empty: Slots = np.flatnonzero((self._state == EMPTY) & (self._pins == 0)).astype(np.int32)
        return empty

    def _evict(self, count: int, num_spare: int = 0) -> Slots:
        """Empty `count` slots and the spare ones, in the order of the policy."""
        held = self._held()
        assert len(held) >= count, f"{count} more slots wanted, {len(held)} unpinned"
        evicted: Slots = held[self._first_to_go(self._owner[held], count + num_spare)]
        self.drop(evicted)
        return evicted

    def _held(self) -> Slots:
        """Return the slots whose experts may leave."""
        held: Slots = np.flatnonzero((self._pins == 0) & (self._state != EMPTY)).astype(np.int32)
        return held

    def _first_to_go(self, keys: Keys, count: int) -> npt.NDArray[np.intp]:
        return self.policy.first_to_go(keys, min(count, len(keys)), self.level)

    # ----------------------------------------------------------------- number
    def resize(self, num_slots: int) -> None:
        """Have `num_slots` slots. Those that go must not be pinned; their experts leave."""
        self.drop(np.arange(num_slots, self.num_slots, dtype=np.int32))
        more = max(0, num_slots - self.num_slots)
        self._owner = np.append(self._owner[:num_slots], np.full(more, NOWHERE, np.int32))
        self._state = np.append(self._state[:num_slots], np.full(more, EMPTY, np.uint8))
        self._pins = np.append(self._pins[:num_slots], np.zeros(more, np.int32))
        self.num_slots = num_slots

    def shrink(self, count: int) -> list[tuple[int, int]]:
        """Have `count` slots less: empty ones go, then those of the experts that leave first.

        The last slots are removed. Experts there that stay move to slots that became empty: returns
        (source, target) of each, whose bytes must be copied. No slot may be pinned at the end.
        """
        kept = self.num_slots - count
        assert not self._pins[kept:].any(), "the last slots are pinned"
        empty = self._empty()[:count]
        vacated = np.concatenate([empty, self._evict(count - len(empty))])
        moves: list[tuple[int, int]] = []
        last = np.arange(kept, self.num_slots)
        sources = last[self._state[last] != EMPTY]
        for source, target in zip(sources, np.sort(vacated[vacated < kept]), strict=False):
            key = self._owner[source]
            self._owner[target], self._state[target] = key, self._state[source]
            self._slot_of.reshape(-1)[key] = target
            self._owner[source], self._state[source] = NOWHERE, EMPTY
            moves.append((int(source), int(target)))
        self.resize(kept)
        return moves

    def can_shrink(self, count: int) -> bool:
        """Return whether `shrink` may be asked for `count`."""
        return (
            count <= min(self.num_slots, self.num_unpinned)
            and not self._pins[self.num_slots - count :].any()
        )

    def least_worth(self, count: int) -> float:
        """Return the policy's score of the last of `count` experts that would leave, infinite if so
        many cannot. Empty slots do not count: those that an eviction left will be used at once."""
        held = self._held()
        if not 0 < count <= len(held):
            return float("inf")
        scores: Scores = self.policy.scores(self._owner[held], self.level)
        return float(np.sort(scores)[count - 1])

    # ------------------------------------------------------------------ worth
    def residents(self) -> list[tuple[int, int]]:
        """Return the layer and id of every expert in a READY slot, the last to leave first."""
        keys = self._owner[self._state == READY]
        order = self._first_to_go(keys, len(keys))[::-1]
        rows, experts = np.divmod(keys[order], self._num_experts)
        layers = np.array(list(self._row))
        return list(zip(layers[rows].tolist(), experts.tolist(), strict=True))

    def owners(self, slots: Slots) -> Keys:
        """Return the keys of the experts in `slots`, NOWHERE where there is none."""
        keys: Keys = self._owner[slots]
        return keys

    def slots_of(self, keys: Keys) -> Slots:
        """Return the slots of the experts `keys`, NOWHERE for those that have none."""
        slots: Slots = self._slot_of.reshape(-1)[keys]
        return slots

    def place(self, key: int) -> tuple[int, int]:
        """Return the layer and id of an expert."""
        row, expert = divmod(key, self._num_experts)
        return list(self._row)[row], expert

    def best_for(self, level: int) -> tuple[int, int, float] | None:
        """Return the layer and id of the expert in a READY and unpinned slot whose copy of `level`
        would have the highest score, and that score; of equal ones the expert with the lowest
        key."""
        keys = np.sort(self._owner[(self._state == READY) & (self._pins == 0)])
        if not len(keys):
            return None
        scores = self.policy.scores(keys, level)
        best = int(scores.argmax())
        return *self.place(int(keys[best])), float(scores[best])

    def outlasting(self, layer: int, experts: npt.NDArray[np.integer]) -> npt.NDArray[np.integer]:
        """Return those of `experts` (distinct, without a slot) that are worth a slot: all while
        slots are empty, then those that the policy would keep longer than others that could
        leave."""
        num_empty = len(self._empty())
        if len(experts) <= num_empty:
            return experts
        held = self._owner[self._held()]
        keys = np.concatenate([held, self._keys(layer, experts)])
        stays = np.ones(len(keys), bool)
        stays[self._first_to_go(keys, len(experts) - num_empty)] = False
        return experts[stays[len(held) :]]

    def recover(self) -> None:
        """Recover after a failure, when no read is under way any more: experts that were loading
        lose their slots, and nothing is pinned."""
        self.drop(np.flatnonzero(self._state == LOADING).astype(np.int32))
        self._pins[:] = 0

    def check_integrity(self) -> None:
        """Raise AssertionError unless both directions of the table agree and states make sense."""
        flat = self._slot_of.reshape(-1)
        homes = np.flatnonzero(flat != NOWHERE)
        assert (self._owner[flat[homes]] == homes).all(), "a slot's owner lies elsewhere"
        assert len(np.unique(flat[homes])) == len(homes), "two experts share a slot"
        owned = self._owner != NOWHERE
        assert owned.sum() == len(homes), "a slot has an owner that does not know it"
        assert (owned == (self._state != EMPTY)).all(), "an empty slot is owned, or the reverse"
        assert (self._pins >= 0).all(), "a slot was unpinned more often than pinned"
        assert (self._pins[self._state == LOADING] > 0).all(), "a loading slot is not pinned"
