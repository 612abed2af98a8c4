"""What `--simulate-gpu` asks for: a GPU that is simulated while a model is measured."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from haversack.devices.errors import PromptError, UnitError
from haversack.devices.units import format_bytes, parse_bytes
from haversack.offload.simulated import Link, Processor, SimulatedDevice

_EXAMPLE = "vram=2GiB,link=12GB/s"
_UNITS_OF_A_SECOND = {"us": 1e6, "ms": 1e3, "s": 1.0}


@dataclass(frozen=True)
class SimulatedGpu:
    """A GPU with `memory_bytes` of memory behind a link. The processor computes with this
    computer's speed and bits where no speed of its memory is given; else only a clock says when
    results, which are zeros, are there."""

    memory_bytes: int
    link: Link
    processor: Processor

    def open(self) -> SimulatedDevice:
        """Return the device; close it after the models on it."""
        return SimulatedDevice(self.memory_bytes, self.link, self.processor)

    def __str__(self) -> str:
        speed = self.processor.memory_bytes_s
        own = "" if speed is None else f", its own at {speed / 1e9:g} GB/s"
        return f"{format_bytes(self.memory_bytes)} behind {self.link.bytes_s / 1e9:g} GB/s{own}"

    @property
    def note(self) -> str:
        """Return what is to be known of figures measured beside it."""
        if self.processor.computes:
            return f"{self.processor.threads} of this computer's threads compute for it"
        return "it computes nothing, so times are those of such a GPU, and logits are not"


def simulated_gpu(text: str) -> SimulatedGpu:
    """Return the GPU that a text as "vram=2GiB,link=12GB/s" describes.

    Besides, `latency=10us` is that of the link, `back=6GB/s` its speed towards the host where that
    differs, `memory=300GB/s` the speed of the GPU's own memory, and `threads=1` how many threads
    compute where that is not given. Raises PromptError.
    """
    given = dict[str, str]()
    for part in text.split(","):
        name, _, value = (word.strip() for word in part.partition("="))
        if name not in _READ or name in given or not value:
            raise PromptError(
                f"--simulate-gpu {text!r} has {part.strip()!r}: give each of"
                f" {', '.join(_READ)} at most once, as in {_EXAMPLE}"
            )
        given[name] = value
    if "vram" not in given or "link" not in given:
        raise PromptError(f"--simulate-gpu {text!r} needs vram and link, as in {_EXAMPLE}")
    return _made({name: _read(name, value) for name, value in given.items()})


def _made(found: Mapping[str, Any]) -> SimulatedGpu:
    link = Link(found["link"], to_host_bytes_s=found.get("back"))
    if "latency" in found:
        link = replace(link, latency_s=found["latency"])
    speed = found.get("memory")
    processor = Processor(speed, threads=found.get("threads", 1), computes=speed is None)
    return SimulatedGpu(found["vram"], link, processor)


def _read(name: str, value: str) -> Any:
    try:
        return _READ[name](value)
    except (ValueError, UnitError) as error:
        raise PromptError(f"--simulate-gpu has {name}={value}: {error}") from None


def _speed(value: str) -> float:
    if not value.endswith("/s"):
        raise ValueError("give bytes a second")
    return float(parse_bytes(value.removesuffix("/s")))


def _seconds(value: str) -> float:
    found = re.fullmatch(r"([0-9.]+)(us|ms|s)", value)
    if found is None:
        raise ValueError("give a number with us, ms or s")
    return float(found[1]) / _UNITS_OF_A_SECOND[found[2]]


def _count(value: str) -> int:
    if not value.isdecimal() or int(value) < 1:
        raise ValueError("give 1 or more")
    return int(value)


_READ: dict[str, Callable[[str], Any]] = {
    "vram": parse_bytes,
    "link": _speed,
    "back": _speed,
    "latency": _seconds,
    "memory": _speed,
    "threads": _count,
}
