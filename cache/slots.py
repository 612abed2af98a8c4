"""The slot table: which expert of which layer lies in which slot of a pool.

A slot is EMPTY, LOADING (it has an owner whose bytes are being read) or READY. Only a READY slot
may be multiplied. A pinned slot is never given to another expert. The table holds integers only:
the code that reads the bytes tells the table when they are there.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from haversack.cache.policies import ExpectedUse, Keys, Policy, Slots

EMPTY, LOADING, READY = 0, 1, 2
NOWHERE = -1


class SlotTable:
    """Which experts of some layers lie in `num_slots` slots.

    `layers` are the numbers of the layers in the order they run; each has `num_experts` experts.
    `policy` says which expert leaves when the slots are full. It is asked for `num_spare` experts
    more than are needed, because asking for a few costs as much as for one, and every layer of
    every token asks. Not thread-safe: one thread keeps the table, though others may move the bytes.
    """

    def __init__(
        self,
        layers: Sequence[int],
        num_experts: int,
        num_slots: int,
        policy: Policy | None = None,
        num_spare: int = 0,
    ) -> None:
        self.num_slots, self._num_spare = num_slots, num_spare
        self._num_experts = num_experts
        self._row = {layer: row for row, layer in enumerate(layers)}
        self._slot_of = np.full((len(layers), num_experts), NOWHERE, np.int32)
        self._owner = np.full(num_slots, NOWHERE, np.int32)  # row * num_experts + expert
        self._state = np.full(num_slots, EMPTY, np.uint8)
        self._pins = np.zeros(num_slots, np.int32)
        self._policy = policy or ExpectedUse(len(layers), num_experts)

    @property
    def policy(self) -> Policy:
        """The policy that says which expert leaves."""
        return self._policy

    def find(self, layer: int, experts: npt.NDArray[np.integer]) -> Slots:
        """Return the slot of each expert of `layer`, NOWHERE for those that have none."""
        slots: Slots = self._slot_of[self._row[layer], experts]
        return slots

    def holds(self, layer: int, expert: int) -> bool:
        """Return whether one expert of `layer` has a slot."""
        return bool(self._slot_of[self._row[layer], expert] != NOWHERE)

    def use(self, layer: int, experts: npt.NDArray[np.integer]) -> None:
        """Note that `experts` of `layer` are used now, those with a slot and those without."""
        self._policy.use(self._keys(layer, experts))

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

    def claim(self, layer: int, experts: npt.NDArray[np.integer]) -> Slots:
        """Give each of `experts` (distinct, without a slot) a slot, which is LOADING and pinned.

        Evicts the experts that the policy names. There must be that many unpinned slots.
        """
        slots = self._vacate(len(experts))
        keys = self._keys(layer, experts)
        self._slot_of.reshape(-1)[keys] = slots
        self._owner[slots] = keys
        self._state[slots] = LOADING
        return slots

    def fill(self, slots: Slots) -> None:
        """Note that the bytes of the experts in these LOADING slots are all there."""
        assert (self._state[slots] == LOADING).all(), "only a loading slot can become ready"
        self._state[slots] = READY

    def drop(self, slots: Slots) -> None:
        """Empty `slots`: their experts have no slot any more. Pins stay."""
        owners = self._owner[slots]
        owned = owners[owners != NOWHERE]
        self._policy.leave(owned)
        self._slot_of.reshape(-1)[owned] = NOWHERE
        self._owner[slots] = NOWHERE
        self._state[slots] = EMPTY

    def borrow(self, count: int) -> Slots:
        """Return `count` slots, emptied and pinned, for bytes that will not stay; `unpin` returns
        them."""
        return self._vacate(count)

    def _vacate(self, count: int) -> Slots:
        """Pin `count` slots, empty ones first."""
        slots = self._empty()
        if len(slots) < count:
            evicted = self._evict(count - len(slots))
            slots = np.concatenate([slots, evicted])
        slots = slots[:count]
        self.pin(slots)
        return slots

    def _empty(self) -> Slots:
        empty: Slots = np.flatnonzero((self._state == EMPTY) & (self._pins == 0)).astype(np.int32)
        return empty

    def _evict(self, count: int) -> Slots:
        """Empty `count` slots and the spare ones, in the order of the policy."""
        held: Slots = np.flatnonzero((self._pins == 0) & (self._state != EMPTY)).astype(np.int32)
        assert len(held) >= count, f"{count} more slots wanted, {len(held)} unpinned"
        count = min(len(held), count + self._num_spare)
        evicted: Slots = held[self._policy.first_to_go(self._owner[held], count)]
        self.drop(evicted)
        return evicted

    # ------------------------------------------------------------------ worth
    def residents(self) -> list[tuple[int, int]]:
        """Return the layer and id of every expert in a READY slot, the last to leave first."""
        keys = self._owner[self._state == READY]
        order = self._policy.first_to_go(keys, len(keys))[::-1]
        rows, experts = np.divmod(keys[order], self._num_experts)
        layers = np.array(list(self._row))
        return list(zip(layers[rows].tolist(), experts.tolist(), strict=True))

    def outlasting(self, layer: int, experts: npt.NDArray[np.integer]) -> npt.NDArray[np.integer]:
        """Return those of `experts` (distinct, without a slot) that are worth a slot: all while
        slots are empty, then those that the policy would keep longer than others that could
        leave."""
        num_empty = len(self._empty())
        if len(experts) <= num_empty:
            return experts
        held = self._owner[(self._pins == 0) & (self._state != EMPTY)]
        keys = np.concatenate([held, self._keys(layer, experts)])
        stays = np.ones(len(keys), bool)
        stays[self._policy.first_to_go(keys, len(experts) - num_empty)] = False
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
