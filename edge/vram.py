"""What `--vram` asks for: bytes of memory of devices, by their names."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict

from haversack.devices.backends import CPU, GPU, IGPU, Device, find_device, list_devices
from haversack.devices.errors import BudgetError, PromptError, UnitError
from haversack.devices.modules import load_gpus
from haversack.devices.units import format_bytes, size_bytes
from haversack.edge.cache_dir import modules_folder

_log = logging.getLogger("haversack.memory")

AUTO_VRAM = "auto"  # what is free on a device, less a reserve
RESERVE_VRAM_BYTES = 1024 * 1024 * 1024  # left to the screen and to other programs by `auto`

Vram = str | int | Sequence[str] | Mapping[str, str | int] | None  # as people give it


class DeviceSettings(TypedDict, total=False):
    """What a model may take of devices, see `plan`."""

    vram: Vram
    placement: str
    trunk: str


@dataclass(frozen=True)
class VramAsk:
    """Bytes of one device's memory. `num_bytes` None stands for `auto`, `device` None for the only
    GPU of the computer, or with `auto` for all of them."""

    device: str | None
    num_bytes: int | None


@dataclass(frozen=True)
class DeviceBudget:
    """The bytes that may be taken of a device's memory."""

    device: Device
    limit_bytes: int


def asked_vram(vram: Vram) -> tuple[VramAsk, ...]:
    """Return what `vram` asks for: a size ("6GiB"), bytes, "auto", "NAME=SIZE", several of these,
    or sizes by name. Raises PromptError for a device that is named twice or not by a text,
    UnitError."""
    if vram is None:
        return ()
    if isinstance(vram, Mapping):
        asks = tuple(VramAsk(_name(name), _num_bytes(size)) for name, size in vram.items())
    elif isinstance(vram, Sequence) and not isinstance(vram, str):
        asks = tuple(_ask(each) for each in vram)
    else:
        asks = (_ask(vram),)
    names = [ask.device for ask in asks]
    for name in names:
        if names.count(name) > 1:
            what = "a size without a device" if name is None else name
            raise PromptError(f"--vram names {what} twice: give each device once")
        if name is None and len(names) > 1:
            raise PromptError(
                "--vram has a size without a device beside others: give each as NAME=SIZE"
            )
    return asks


def _ask(text: str | int) -> VramAsk:
    """Return what "6GiB" or "NAME=6GiB" asks for; a name may hold any sign."""
    if not isinstance(text, str):
        return VramAsk(None, _num_bytes(text))
    name, is_named, size = text.rpartition("=")
    if is_named and not name.strip():
        raise PromptError(f"--vram {text!r} has no device before the =: give NAME=SIZE or SIZE")
    return VramAsk(name.strip() or None, _num_bytes(size.strip()))


def _name(name: object) -> str:
    if not isinstance(name, str) or not name.strip():
        raise PromptError(f'vram names the device {name!r}: give a name, as in {{"CUDA0": "6GiB"}}')
    return name.strip()


def _num_bytes(size: str | int) -> int | None:
    if size == AUTO_VRAM:
        return None
    num_bytes = size_bytes(size)
    if not num_bytes:
        raise UnitError("vram is 0: give a size above zero, as in 6GiB, or leave the device out")
    return num_bytes


def device_budgets(asks: Sequence[VramAsk]) -> tuple[DeviceBudget, ...]:
    """Return the budgets of the devices that are asked for, those of size 0 left out.

    Raises DeviceError for a device that is not there, or whose server does not answer, PromptError
    for a size that could mean several, and BudgetError for one that is larger than what is free.
    """
    found = [budget for ask in asks for budget in _budgets_of(ask)]
    return tuple(budget for budget in found if budget.limit_bytes)


def _budgets_of(ask: VramAsk) -> list[DeviceBudget]:
    modules_dir = modules_folder(None)
    if ask.device is None:
        devices = _gpus(modules_dir)
    else:
        devices = [_not_the_cpu(find_device(ask.device, modules_dir))]
    if ask.num_bytes is None:
        if not devices:
            _log.warning("--vram auto: no backend finds a GPU, so only RAM is used")
        return [DeviceBudget(each, auto_bytes(each.memory().free_bytes)) for each in devices]
    if len(devices) != 1:
        raise _unclear(ask.num_bytes, devices)
    return [DeviceBudget(devices[0], _checked(devices[0], ask.num_bytes))]


def _gpus(modules_dir: Path) -> list[Device]:
    """Return the GPUs with memory of their own, or else those that share the computer's."""
    load_gpus(modules_dir)
    found = [device for device in list_devices() if not is_remote(device)]
    own = [device for device in found if device.kind == GPU]
    return own or [device for device in found if device.kind == IGPU]


def _not_the_cpu(device: Device) -> Device:
    if device.kind == CPU:
        raise PromptError(f"--vram names {device.name}, whose memory --ram bounds: leave it out")
    return device


def is_remote(device: Device) -> bool:
    """Return whether a server computes on the device."""
    return device.name.startswith("RPC")


def rounds_otherwise(device: Device) -> bool:
    """Return whether the device is known to compute with other bits than the CPU. Of a server's it
    is not known."""
    return not is_remote(device) and not device.name.startswith("Simulated")


def auto_bytes(free_bytes: int) -> int:
    """Return what `auto` takes of a device's free memory: all but the reserve, at least half."""
    return max(free_bytes - RESERVE_VRAM_BYTES, free_bytes // 2)


def _checked(device: Device, num_bytes: int) -> int:
    memory = device.memory()
    if memory.total_bytes and num_bytes > memory.free_bytes:
        raise BudgetError(
            f"--vram asks for {format_bytes(num_bytes)} of {device.name}, which has"
            f" {format_bytes(memory.free_bytes)} free of {format_bytes(memory.total_bytes)}: lower"
            " --vram, or end what else uses the device",
            need_bytes=num_bytes,
            have_bytes=memory.free_bytes,
        )
    return num_bytes


def _unclear(num_bytes: int, devices: Sequence[Device]) -> PromptError:
    size = format_bytes(num_bytes)
    if devices:
        names = ", ".join(device.name for device in devices)
        return PromptError(
            f"--vram asks for {size} of one of {names}: name it, as in"
            f" --vram {devices[0].name}={size.replace(' ', '')}"
        )
    return PromptError(
        f"--vram asks for {size} of a GPU, and no backend finds one: `haversack doctor` says what"
        " there is, docs/gpu.md how to get a backend; or name a device, as in RPC[host:port]=6GiB"
    )
