"""How much of a trunk lies on a device: as many of the last layers, with their keys and values, as
its budget holds beside a few experts."""

from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from haversack.devices.backends import Device
from haversack.devices.errors import PromptError
from haversack.devices.llama import ContextShape
from haversack.devices.llama_model import LlamaModel
from haversack.devices.needs import DeviceNeeds, MemoryNeeds, memory_needs
from haversack.devices.trunk_placement import LayersOn, TrunkPlacement
from haversack.edge.vram import rounds_otherwise
from haversack.offload.expert_buffer import ExpertBuffer
from haversack.quant.gguf import EXPERT_PATTERN

AUTO_TRUNK, HOST, DEVICE = "auto", "host", "device"
_CHOICES = (AUTO_TRUNK, HOST, DEVICE)


@dataclass(frozen=True)
class TrunkPlan:
    """`num_layers` of `of_layers` (the output counts as one) on a device, and what everything takes
    there and on the host."""

    num_layers: int
    of_layers: int
    needs: MemoryNeeds

    @property
    def there(self) -> DeviceNeeds:
        """What the layers take on the device."""
        return self.needs.devices[0]


def checked_trunk(trunk: str) -> str:
    """Return it. Raises PromptError for a choice that does not exist."""
    if trunk not in _CHOICES:
        raise PromptError(f"--trunk is {trunk!r}: give {', '.join(_CHOICES)}")
    return trunk


def may_hold_trunk(device: Device, trunk: str) -> bool:
    """Return whether layers go to the device: with `auto` to GPUs of this computer."""
    return trunk == DEVICE or (trunk == AUTO_TRUNK and rounds_otherwise(device))


def plan_trunk(
    path: Path, shape: ContextShape, device: Device, room_bytes: int, of_layers: int
) -> TrunkPlan | None:
    """Return the plan with the most of a model's `of_layers` layers (the output is one) that fit
    into `room_bytes` of the device; None if not even one does. Each try is a dry run of
    llama.cpp's. Raises ModelFileError."""

    def needs_of(num_layers: int) -> MemoryNeeds:
        placement = TrunkPlacement((LayersOn(device, num_layers),))
        with closing(ExpertBuffer(EXPERT_PATTERN)) as experts:
            model = LlamaModel(path, experts=experts, dry=True, placement=placement)
            with closing(model):
                return memory_needs(model, shape)

    return most_layers(needs_of, room_bytes, of_layers)


def most_layers(
    needs_of: Callable[[int], MemoryNeeds], room_bytes: int, of_layers: int
) -> TrunkPlan | None:
    """Return the plan of the most layers whose needs on the device fit; all of them are tried
    first."""
    found, least, most, tried = None, 1, of_layers, of_layers
    while least <= most:
        plan = TrunkPlan(tried, of_layers, needs_of(tried))
        there = plan.there
        if there.weight_bytes + there.kv_bytes + there.compute_bytes <= room_bytes:
            found, least = plan, tried + 1
        else:
            most = tried - 1
        tried = (least + most + 1) // 2
    return found
