"""`Budget`: bytes of memory that one model or several may take together."""

from haversack.devices.budget import MemoryBudget
from haversack.devices.units import size_bytes
from haversack.edge.vram import Vram, asked_vram, device_budgets


class Budget:
    """Anonymous memory of this process, and memory of devices, for all models that are loaded with
    this budget as `ram`:

        budget = edge.Budget("8GiB", vram="4GiB")
        small = edge.load("small.gguf", ram=budget)
        large = edge.load("large.gguf", ram=budget)  # slots for experts in what is left

    The memory of the process itself counts once. A model holds its part until it is closed. A model
    that streams its experts takes all that is left, so load it last.
    """

    def __init__(self, ram: str | int, vram: Vram = None) -> None:
        """`ram` is a size ("8GiB") or a number of bytes. `vram` is memory of devices: a size of the
        only GPU, "NAME=SIZE", several of these, or sizes by name; "auto" stands for what is free
        now less a reserve. Raises UnitError, PromptError for a device that is not there, and
        BudgetError for more than is free on it."""
        self.ram = MemoryBudget("ram", size_bytes(ram), knob="raise --ram")
        asks = asked_vram(vram)
        self.asks_devices = bool(asks)  # also where "auto" finds none
        self.devices = {
            found.device.name: device_memory(found.device.name, found.limit_bytes)
            for found in device_budgets(asks)
        }

    @property
    def limit_bytes(self) -> int:
        """Return all bytes of the RAM budget."""
        return self.ram.limit_bytes

    @property
    def room_bytes(self) -> int:
        """Return the bytes that open models leave for the process itself and for another model."""
        return self.ram.left_bytes

    def __str__(self) -> str:
        """Return the models' parts as a table for each memory."""
        return "\n".join(str(memory) for memory in (self.ram, *self.devices.values()))


def device_memory(name: str, limit_bytes: int) -> MemoryBudget:
    """Return an empty budget of so many bytes of a device's memory."""
    return MemoryBudget(name, limit_bytes, knob=f"raise --vram {name}=SIZE")
