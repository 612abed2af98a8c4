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
    """An expert's copy moves up: its slot on the host is pinned, the one on the device LOADING."""

    key: int
    host_slot: int
    device_slot: int


class Promotions:
    """Moves experts from the slots of `host` to those of `device`, which share `rule`.

    `above` are the tables of all devices with slots for these experts, `device` among them. With
    `exclusive` an expert that has moved leaves its slot on the host.
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
        if self._device.num_empty == 0:
            leaving = self._least_used()
            if not len(leaving):
                return None
            if self._rule.rates(leaving)[0] >= MOST_SHARE * self._rule.rates(coming)[0]:
                return None
            self._device.drop(self._device.slots_of(leaving))
        host_slot = self._host.slots_of(coming)
        self._host.pin(host_slot)
        layer, expert = self._device.place(int(coming[0]))
        device_slot = self._device.claim(layer, np.array([expert], np.int32))
        return Promotion(int(coming[0]), int(host_slot[0]), int(device_slot[0]))

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
        """Note that the bytes of `promotion` are all there, or that the copy was given up."""
        device_slot = np.array([promotion.device_slot], np.int32)
        host_slot = np.array([promotion.host_slot], np.int32)
        (self._device.fill if came else self._device.drop)(device_slot)
        self._device.unpin(device_slot)
        self._host.unpin(host_slot)
        if came and self._exclusive and not self._host.is_pinned(host_slot)[0]:
            self._host.drop(host_slot)
