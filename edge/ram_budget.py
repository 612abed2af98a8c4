"""`Budget`: bytes of memory that one model or several may take together."""

from haversack.devices.budget import MemoryBudget
from haversack.devices.units import size_bytes


class Budget:
    """Anonymous memory of this process for all models that are loaded with this budget as `ram`:

        budget = edge.Budget("8GiB")
        small = edge.load("small.gguf", ram=budget)
        large = edge.load("large.gguf", ram=budget)  # slots for experts in what is left

    The memory of the process itself counts once. A model holds its part until it is closed. A model
    that streams its experts takes all that is left, so load it last.
    """

    def __init__(self, ram: str | int, vram: str | int | None = None) -> None:
        """Both are sizes ("8GiB") or numbers of bytes. `vram` is memory of GPUs, which no model can
        use yet: a load with some is refused. Raises UnitError."""
        self.ram = MemoryBudget("ram", size_bytes(ram), knob="raise --ram")
        self.vram = MemoryBudget("vram", size_bytes(vram or 0), knob="raise --vram")

    @property
    def limit_bytes(self) -> int:
        """Return all bytes of the RAM budget."""
        return self.ram.limit_bytes

    @property
    def room_bytes(self) -> int:
        """Return the bytes that open models leave for the process itself and for another model."""
        return self.ram.left_bytes

    def __str__(self) -> str:
        """Return the models' parts as a table."""
        return str(self.ram)
