"""How much of this process's anonymous memory each open model holds, and how much everything else
holds; and what each holds of the memory of devices."""

import os
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count

from haversack.devices.budget import MemoryBudget
from haversack.devices.errors import BudgetError
from haversack.devices.memory import anonymous_bytes, slots_resident_bytes
from haversack.devices.system import host
from haversack.devices.units import format_bytes

_MIB = 1024 * 1024
_LEAST_BYTES = 64 * _MIB  # measured: interpreter, libraries and threads take 36 to 53
_MARGIN_BYTES = 8 * _MIB  # the least that a figure lies above what was measured
_SLACK_BYTES = 32 * _MIB  # how far a new figure lies above it


@dataclass(frozen=True)
class Entry:
    """A named part of a device's memory: the bytes reserved for it, and how many of them are
    held."""

    name: str
    reserved_bytes: int
    held_bytes: int


class Lease:
    """One model's part of a budget, and how much of it is held. `Leases.lease` makes it, `close`
    ends it.

    `parts` are the bytes that a model takes outside its slots, by name: weights, caches, scratch.
    llama.cpp touches more of its scratch when a larger batch comes, so `held_bytes` grows after
    loading. It leaves out slots, which `slots_resident_bytes` counts.
    """

    def __init__(
        self, leases: "Leases", budget: MemoryBudget, parts: Mapping[str, int], slots_bytes: int
    ) -> None:
        self.budget, self.slots_bytes = budget, slots_bytes
        self.most_held_bytes = sum(parts.values())
        self.reserved_bytes = self.most_held_bytes + slots_bytes
        self.held_bytes = 0
        self._leases, self._parts = leases, dict(parts)

    def grow(self, num_bytes: int) -> None:
        """Count `num_bytes` more as held, up to what was planned."""
        self.held_bytes = min(self.most_held_bytes, self.held_bytes + max(0, num_bytes))

    def resize(self, slots_bytes: int, limit_bytes: int) -> None:
        """Have so many bytes of slots, in a budget of `limit_bytes`. Raises BudgetError; nothing is
        changed then."""
        self._leases.resize(self, slots_bytes, limit_bytes)

    def entries(self, slots_held_bytes: int = 0) -> list[Entry]:
        """Return each part by name, slots last.

        The bytes held were measured for all parts together. They fill the parts in order, so the
        parts that are held in full must come first.
        """
        entries, left_bytes = list[Entry](), self.held_bytes
        for name, num_bytes in self._parts.items():
            entries.append(Entry(name, num_bytes, min(num_bytes, left_bytes)))
            left_bytes -= entries[-1].held_bytes
        return [*entries, Entry("slots", self.slots_bytes, slots_held_bytes)]

    def close(self) -> None:
        """Return the part to the budget, after its memory was freed; a second call does nothing."""
        self._leases.end(self)


class Leases:
    """The leases of one kind of memory, in any number of budgets; safe to use from any thread."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._names: dict[Lease, str] = {}  # in the budget of each lease

    def lease(
        self, budget: MemoryBudget, holder: str, parts: Mapping[str, int], slots_bytes: int = 0
    ) -> Lease:
        """Set `parts` and `slots_bytes` aside. Raises BudgetError where they do not fit."""
        lease = Lease(self, budget, parts, slots_bytes)
        with self._lock:
            taken = {name for name, _ in budget.rows()}
            name = next(name for i in count(1) if (name := f"{holder} {i}") not in taken)
            budget.reserve(name, lease.reserved_bytes)
            self._names[lease] = name
        return lease

    def end(self, lease: Lease) -> None:
        """Count the lease no more: its memory is free."""
        with self._lock:
            name = self._names.pop(lease, None)
            if name is not None:
                lease.budget.release(name)

    def resize(self, lease: Lease, slots_bytes: int, limit_bytes: int) -> None:
        """See `Lease.resize`."""
        with self._lock:
            budget, name = lease.budget, self._names[lease]
            reserved_bytes, before_bytes = lease.most_held_bytes + slots_bytes, budget.limit_bytes
            budget.release(name)
            try:
                budget.resize(limit_bytes)
                budget.reserve(name, reserved_bytes)
            except BudgetError:
                budget.resize(before_bytes)
                budget.reserve(name, lease.reserved_bytes)
                raise
            lease.slots_bytes, lease.reserved_bytes = slots_bytes, reserved_bytes

    def forget_threads(self) -> None:
        """Replace the locks, which threads may hold that do not exist in a forked process."""
        self._lock = threading.RLock()


class Ledger(Leases):
    """The leases of this process's memory, and what the process takes.

    One model is loaded at a time, so that what a load takes can be measured.
    """

    def __init__(self) -> None:
        super().__init__()
        self.loading = threading.RLock()  # load a model while it is held; other threads' loads wait
        self._figure_bytes = _LEAST_BYTES

    @contextmanager
    def borrowed(
        self, budget: MemoryBudget, num_bytes: int, what: str, knob: str
    ) -> Iterator[Lease]:
        """Lease so many bytes more inside the block, for `what`, of what neither leases nor the
        process itself take of the budget. Raises BudgetError with need, have and `knob` where they
        are not there."""
        with self._lock:
            spare_bytes = max(0, budget.left_bytes - self.others_bytes())
            if num_bytes > spare_bytes:
                raise BudgetError(
                    f"{what} need {format_bytes(num_bytes)}, {format_bytes(spare_bytes)} of the"
                    f" budget of {format_bytes(budget.limit_bytes)} is free: {knob} or raise --ram",
                    need_bytes=budget.limit_bytes + num_bytes - spare_bytes,
                    have_bytes=budget.limit_bytes,
                )
            lease = self.lease(budget, what, {what: num_bytes})
        try:
            yield lease
        finally:
            lease.close()

    def others_bytes(self) -> int:
        """Return the anonymous memory that no lease covers: of the interpreter, libraries and the
        application. Memory that was freed does not count."""
        host.give_back_freed_memory()
        with self._lock:
            held_bytes = sum(lease.held_bytes for lease in self._names)
            return max(0, anonymous_bytes() - slots_resident_bytes() - held_bytes)

    def process_bytes(self) -> int:
        """Return `others_bytes` with slack, for plans: it stays equal while the process changes
        little. While another thread loads a model it is the last figure."""
        if self.loading.acquire(blocking=False):
            try:
                measured_bytes = self.others_bytes()
                with self._lock:
                    self._figure_bytes = steady_figure(measured_bytes, self._figure_bytes)
            finally:
                self.loading.release()
        return self._figure_bytes

    def untouched_bytes(self) -> int:
        """Return the bytes that are leased and not held yet, such as empty slots."""
        with self._lock:
            open_bytes = sum(lease.reserved_bytes - lease.held_bytes for lease in self._names)
        return max(0, open_bytes - slots_resident_bytes())

    @contextmanager
    def measured(self, lease: Lease) -> Iterator[None]:
        """Count the memory that the process takes inside the block as held by the lease."""
        before_bytes = self.others_bytes()
        try:
            yield
        finally:
            lease.grow(self.others_bytes() - before_bytes)

    def forget_threads(self) -> None:
        """See `Leases.forget_threads`."""
        super().forget_threads()
        self.loading = threading.RLock()


def steady_figure(measured_bytes: int, last_bytes: int) -> int:
    """Return a figure at least 8 MiB above `measured_bytes`.

    It is the last figure while that is at most 64 MiB above, so that two plans in an unchanged
    process agree. Otherwise it is the memory of a plain process after a model has run, or
    `measured_bytes` with slack if that is more.
    """
    least = max(_LEAST_BYTES, measured_bytes + _MARGIN_BYTES)
    if least <= last_bytes <= max(_LEAST_BYTES, measured_bytes + 2 * _SLACK_BYTES):
        return last_bytes
    return _LEAST_BYTES if least == _LEAST_BYTES else measured_bytes + _SLACK_BYTES


ledger = Ledger()  # the process has one memory, so it has one ledger
device_leases = Leases()  # of the memory of devices
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=ledger.forget_threads)
    os.register_at_fork(after_in_child=device_leases.forget_threads)
