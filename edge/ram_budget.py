"""`Budget`: bytes of memory that one model or several may take together."""

from haversack.devices.budget import MemoryBudget
from haversack.devices.units import parse_bytes


class Budget:
    """Anonymous memory of this process for all models that are loaded with it as `ram`:

        budget = edge.Budget("8GiB")
        small = edge.load("small.gguf", ram=budget)
        large = edge.load("large.gguf", ram=budget)  # slots for experts in what is left

    What the process itself takes is in it, once. A model holds its part until it is closed. A
    model that streams its experts takes all that is left, so load it last.
    """

    def __init__(self, ram: str | int, vram: str | int | None = None) -> None:
        """Sizes ("8GiB") or numbers of bytes. `vram` is memory of GPUs, which no model can use
        yet: a load that is given some is refused. Raises UnitError."""
        self.ram = MemoryBudget("ram", _bytes(ram), knob="raise --ram")
        self.vram = MemoryBudget("vram", _bytes(vram or 0), knob="raise --vram")

    @property
    def limit_bytes(self) -> int:
        """All of the RAM."""
        return self.ram.limit_bytes

    @property
    def room_bytes(self) -> int:
        """What the open models leave: for what the process itself takes, and for another model."""
        return self.ram.left_bytes

    def __str__(self) -> str:
        """The models' parts as a table."""
        return str(self.ram)


def _bytes(size: str | int) -> int:
    return parse_bytes(size) if isinstance(size, str) else size
