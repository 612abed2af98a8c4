"""`Budget`: bytes of memory that one model or several may take together."""

import itertools
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from haversack.devices.budget import MemoryBudget
from haversack.devices.errors import BudgetError
from haversack.devices.ledger import Holding, ledger
from haversack.devices.units import format_bytes, parse_bytes


class Budget:
    """Anonymous memory of this process for all models that are loaded with it as `ram`:

        budget = edge.Budget("8GiB")
        small = edge.load("small.gguf", ram=budget)
        large = edge.load("large.gguf", ram=budget)  # slots for experts in what is left

    What the process itself takes is in it, once. A model holds its part until it is closed. A
    model that streams its experts takes all that is left, so load it last.
    """

    def __init__(self, ram: str | int) -> None:
        """`ram` is a size ("8GiB") or a number of bytes. Raises UnitError."""
        limit_bytes = parse_bytes(ram) if isinstance(ram, str) else ram
        self._parts = MemoryBudget("ram", limit_bytes, knob="raise --ram")
        self._lock = threading.Lock()
        self._numbers = itertools.count(1)

    @property
    def limit_bytes(self) -> int:
        """All of it."""
        return self._parts.limit_bytes

    @property
    def room_bytes(self) -> int:
        """What the open models leave: for what the process itself takes, and for another model."""
        with self._lock:
            return self._parts.left_bytes

    def __str__(self) -> str:
        """The models' parts as a table."""
        with self._lock:
            return str(self._parts)

    def reserve(self, num_bytes: int, most_held_bytes: int) -> "Lease":
        """A part of `num_bytes` for a model that holds at most `most_held_bytes` of them outside
        its slots. Raises BudgetError where it does not fit."""
        with self._lock:
            name = f"model {next(self._numbers)}"
            self._parts.reserve(name, num_bytes)
        return Lease(self, name, Holding(num_bytes, most_held_bytes))

    def release(self, name: str) -> None:
        """Take the part of that name back."""
        with self._lock:
            self._parts.release(name)

    @contextmanager
    def borrowed(self, num_bytes: int, what: str, knob: str) -> Iterator[Holding]:
        """Hold so many bytes more inside the block, for `what`; the holding given is to grow as
        they are filled. What the process does not take of its part may be borrowed. Raises
        BudgetError with need, have and `knob` where they are not there."""
        process_bytes = ledger.others_bytes()
        with self._lock:
            spare_bytes = max(0, self._parts.left_bytes - process_bytes)
            if num_bytes > spare_bytes:
                raise BudgetError(
                    f"{what} need {format_bytes(num_bytes)}, {format_bytes(spare_bytes)} of the"
                    f" budget of {format_bytes(self.limit_bytes)} is free: {knob} or raise --ram",
                    need_bytes=self.limit_bytes + num_bytes - spare_bytes,
                    have_bytes=self.limit_bytes,
                )
            name = f"{what} {next(self._numbers)}"
            self._parts.reserve(name, num_bytes)
        lease = Lease(self, name, Holding(num_bytes, num_bytes))
        try:
            yield lease.holding
        finally:
            lease.close()


class Lease:
    """A part of a budget, and what is really held of it; it lasts until `close`."""

    def __init__(self, budget: Budget, name: str, holding: Holding) -> None:
        self.budget, self.holding = budget, holding
        self._name: str | None = name
        ledger.add(holding)

    def close(self) -> None:
        """Give the part back, after its memory was freed; a second call does nothing."""
        name, self._name = self._name, None
        if name is not None:
            ledger.remove(self.holding)
            self.budget.release(name)
