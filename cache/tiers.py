"""Tiers: which experts move from the host's slots to those of a device, in numbers and without I/O.

A device computes with the experts that lie there while the host computes with its own. An expert
that has moved stays for many passes, so what counts is how often it is used, not how soon. The
engine keeps the same books in C++ (offload/native/promotions.cpp).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from haversack.cache.policies import ExpectedUse, Keys
from haversack.cache.slots import NOWHERE, SlotTable

MOST_SHARE = 0.7  # of the coming expert's uses: one used less than that leaves, see promotions.cpp


@dataclass(frozen=True)
class Promotion:
    """An expert's copy moves up: its slot on the host is pinned, the one on the device LOADING. If
    another one is `leaving` the device for the host, that goes first, and until then stays READY on
    the device: its slot there is pinned, and `left_slot` of the host's is borrowed for it."""

    key: int
    host_slot: int
    device_slot: int
    leaving: int = NOWHERE
    left_slot: int = NOWHERE


class Promotions:
    """Moves experts from the slots of `host` to those of `device`, which share `rule`.

    `above` are the tables of all devices with slots for these experts, `device` among them. With
    `exclusive` an expert that has moved leaves its slot on the host, and one that leaves the device
    moves to the host.
    """

    def __init__(
        self,
        host: SlotTable,
        device: SlotTable,
        rule: ExpectedUse,
        above: Sequence[SlotTable],
        *,
        exclusive: bool,
    ) -> None:
        self._host, self._device, self._rule = host, device, rule
        self._above, self._exclusive = above, exclusive

    def next(self) -> Promotion | None:
        """Return the next expert to move, between passes: the one that is used most of those on no
        device, if a slot is empty or an expert on the device is used less by a margin, which then
        leaves. None if no expert is worth it."""
        coming = self._most_used()
        if not len(coming) or self._device.num_slots == 0:
            return None
        leaving = None
        if self._device.num_empty == 0:
            leaving = self._least_used()
            if not len(leaving):
                return None
            if self._rule.rates(leaving)[0] >= MOST_SHARE * self._rule.rates(coming)[0]:
                return None
        key, host_slot = int(coming[0]), self._host.slots_of(coming)
        self._host.pin(host_slot)
        if leaving is not None:
            device_slot = self._device.slots_of(leaving)
            if self._exclusive and self._is_worth_a_slot(int(leaving[0])):
                self._device.pin(device_slot)
                there, left = int(device_slot[0]), int(self._host.borrow(1)[0])
                return Promotion(key, int(host_slot[0]), there, int(leaving[0]), left)
            self._device.drop(device_slot)
        return Promotion(key, int(host_slot[0]), self._claim(key))

    def _claim(self, key: int) -> int:
        layer, expert = self._device.place(key)
        return int(self._device.claim(layer, np.array([expert], np.int32))[0])

    def _is_worth_a_slot(self, key: int) -> bool:
        layer, expert = self._host.place(key)
        if self._host.holds(layer, expert):
            return False
        return len(self._host.outlasting(layer, np.array([expert], np.int32))) > 0

    def take_down(self, promotion: Promotion) -> Promotion:
        """Note that the bytes of the expert that is leaving are all on the host: its slot is the
        coming one's. Return what is left of the promotion."""
        left_slot = np.array([promotion.left_slot], np.int32)
        leaving = np.array([promotion.leaving], np.int32)
        if self._host.slots_of(leaving)[0] == NOWHERE:
            self._host.adopt(left_slot, leaving)
            self._host.fill(left_slot)
        self._host.unpin(left_slot)
        device_slot = np.array([promotion.device_slot], np.int32)
        self._device.unpin(device_slot)
        self._device.drop(device_slot)
        return Promotion(promotion.key, promotion.host_slot, self._claim(promotion.key))

    def _most_used(self) -> Keys:
        """Return the expert that is used most of those with a copy on the host alone; of equal ones
        that with the lowest key. Empty if there is none."""
        slots = np.arange(self._host.num_slots, dtype=np.int32)
        slots = slots[self._host.is_ready(slots) & ~self._host.is_pinned(slots)]
        keys = np.sort(self._host.owners(slots))
        for table in self._above:
            keys = keys[table.slots_of(keys) == NOWHERE]
        most: Keys = keys[[self._rule.rates(keys).argmax()]] if len(keys) else keys
        return most

    def _least_used(self) -> Keys:
        """The same of the expert on the device that is used least."""
        slots = np.arange(self._device.num_slots, dtype=np.int32)
        keys = np.sort(self._device.owners(slots[~self._device.is_pinned(slots)]))
        keys = keys[keys != NOWHERE]
        least: Keys = keys[[self._rule.rates(keys).argmin()]] if len(keys) else keys
        return least

    def finish(self, promotion: Promotion, *, came: bool) -> None:
        """Note that the bytes of `promotion` are all there, or that the copies were given up."""
        device_slot = np.array([promotion.device_slot], np.int32)
        host_slot = np.array([promotion.host_slot], np.int32)
        if promotion.leaving != NOWHERE:
            self._host.unpin(np.array([promotion.left_slot], np.int32))
        else:
            (self._device.fill if came else self._device.drop)(device_slot)
        self._device.unpin(device_slot)
        self._host.unpin(host_slot)
        if came and self._exclusive and not self._host.is_pinned(host_slot)[0]:
            self._host.drop(host_slot)
