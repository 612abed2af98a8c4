"""`MemoryBudget`: the bytes of one device, reserved by name. Pure arithmetic."""

from haversack.devices.errors import BudgetError
from haversack.devices.units import format_bytes

_LEFT = "left"


class MemoryBudget:
    """The bytes of one device ("ram", "gpu 0") and how many of them each name holds.

    Reservations and what is left always add up to `limit_bytes`, to the byte. Nothing is
    allocated here: a planner reserves first, the runtime allocates what was reserved.
    """

    def __init__(self, device: str, limit_bytes: int, *, knob: str) -> None:
        """`knob` ends every refusal. It says what the user can change, such as "raise --ram"."""
        if limit_bytes < 0:
            raise ValueError(f"the budget of {device} is negative: {limit_bytes} bytes")
        self._device = device
        self._limit_bytes = limit_bytes
        self._knob = knob
        self._reservations: dict[str, int] = {}

    @property
    def limit_bytes(self) -> int:
        """Return all bytes of the budget."""
        return self._limit_bytes

    @property
    def reserved_bytes(self) -> int:
        return sum(self._reservations.values())

    @property
    def left_bytes(self) -> int:
        return self._limit_bytes - self.reserved_bytes

    def reserve(self, name: str, num_bytes: int) -> None:
        """Reserve `num_bytes` for `name`, all of them or none.

        Raises BudgetError where fewer are left: `need_bytes` is the budget that would hold every
        reservation so far and this one, `have_bytes` the limit. Raises ValueError for a name in
        use and for a negative number.
        """
        if name in self._reservations or name == _LEFT:
            raise ValueError(f'"{name}" is already reserved in the {self._device} budget')
        if num_bytes < 0:
            raise ValueError(f'"{name}" cannot reserve {num_bytes} bytes')
        if num_bytes > self.left_bytes:
            raise self._refusal(name, num_bytes)
        self._reservations[name] = num_bytes

    def release(self, name: str) -> int:
        """Take the reservation back, for instance to reserve what was measured instead.

        Returns its bytes; raises KeyError for a name without a reservation.
        """
        return self._reservations.pop(name)

    def resize(self, limit_bytes: int) -> None:
        """Have so many bytes from now on. Raises BudgetError where more of them are reserved."""
        if limit_bytes < self.reserved_bytes:
            raise BudgetError(
                f"{format_bytes(self.reserved_bytes)} of {self._device} are reserved, a budget of"
                f" {format_bytes(limit_bytes)} does not hold them: {self._knob}",
                need_bytes=self.reserved_bytes,
                have_bytes=limit_bytes,
            )
        self._limit_bytes = limit_bytes

    def rows(self) -> list[tuple[str, int]]:
        """Return (name, bytes) in the order reserved, "left" last; they add up to the limit."""
        return [*self._reservations.items(), (_LEFT, self.left_bytes)]

    def check_integrity(self) -> None:
        """Assert that no reservation is negative and that the rows add up to the limit."""
        assert all(num_bytes >= 0 for _, num_bytes in self.rows()), self.rows()
        assert sum(num_bytes for _, num_bytes in self.rows()) == self._limit_bytes, self.rows()

    def __str__(self) -> str:
        """Return the budget as a table, one reservation a line."""
        rows = [(self._device, self._limit_bytes)]
        rows += [(f"  {name}", num_bytes) for name, num_bytes in self.rows()]
        width = max(len(name) for name, _ in rows)
        return "\n".join(f"{name:<{width}}  {format_bytes(num):>10}" for name, num in rows)

    def _refusal(self, name: str, num_bytes: int) -> BudgetError:
        left_bytes = self.left_bytes
        short_bytes = num_bytes - left_bytes
        return BudgetError(
            f"{name} needs {format_bytes(num_bytes)} of {self._device}, {format_bytes(left_bytes)} "
            f"of {format_bytes(self._limit_bytes)} is left, {format_bytes(short_bytes)} too few: "
            f"{self._knob}",
            need_bytes=self._limit_bytes + short_bytes,
            have_bytes=self._limit_bytes,
        )
