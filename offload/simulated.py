"""A simulated GPU: a ggml device on the host's own processor, with a limited memory of its own
behind a link of a chosen speed. It serves tests and benchmarks on computers without a GPU."""

from dataclasses import dataclass

from haversack.devices.errors import ClosedError
from haversack.devices.units import format_bytes
from haversack.offload import _native as native

_FAULTS = ("allocation", "copy", "graph", "synchronize")  # enum SimulatedFault
_in_use: set[int] = set()  # the numbers of devices


@dataclass(frozen=True)
class Link:
    """The path between host and device. In each direction one copy is under way at a time, at
    `bytes_s`, and is there `latency_s` after its last byte. `to_host_bytes_s` is the speed towards
    the host where that differs."""

    bytes_s: float
    latency_s: float = 10e-6
    to_host_bytes_s: float | None = None

    def __post_init__(self) -> None:
        if self.bytes_s <= 0 or self.latency_s < 0 or (self.to_host_bytes_s or 1) <= 0:
            raise ValueError(f"a link needs a speed above 0 and a latency, not {self}")


@dataclass(frozen=True)
class Processor:
    """What computes on the device. `memory_bytes_s` is how fast it reads its own memory, which
    says how long a graph takes; None: as long as this computer needs. A graph begins `launch_s`
    after it was asked for.

    llama.cpp's CPU kernels compute the results, on `threads` threads, with the CPU's bits. Where
    that takes longer than the simulated device would, waits become longer, and `Counts.late_s` says
    by how much. With `computes` False results are zeros and cost this computer nothing: times are
    right for a device of any speed, texts are not. Use that with a routing that is forced.
    """

    memory_bytes_s: float | None = None
    launch_s: float = 10e-6
    threads: int = 1
    computes: bool = True

    def __post_init__(self) -> None:
        if (self.memory_bytes_s or 1) <= 0 or self.launch_s < 0 or self.threads < 1:
            raise ValueError(f"a processor needs speed, time and threads, not {self}")


@dataclass(frozen=True)
class Counts:
    """What a simulated device holds, and did since it was made. `late_s` is by how many seconds
    waits took longer than on the device that is simulated."""

    used_bytes: int
    peak_bytes: int
    to_device_bytes: int
    to_host_bytes: int
    num_copies: int
    num_graphs: int
    num_streams: int
    late_s: float


class SimulatedDevice:
    """A device of the type GPU in ggml's registry, until `close`; a context manager.

    `name` is Simulated0 for the first, `address` that of its struct ggml_backend_device. Its memory
    counts as shared memory of the process, and not as anonymous (Linux). While it is registered,
    llama.cpp gives it to every model that is loaded without a list of devices.
    """

    def __init__(self, memory_bytes: int, link: Link, processor: Processor | None = None) -> None:
        """An allocation fails that would make it hold more than `memory_bytes`."""
        if memory_bytes < 1:
            raise ValueError(f"a device needs at least one byte of memory, not {memory_bytes}")
        processor = processor or Processor()
        self.memory_bytes = memory_bytes
        self._number = next(i for i in range(len(_in_use) + 1) if i not in _in_use)
        self.name = f"Simulated{self._number}"
        self.description = f"{format_bytes(memory_bytes)} behind {link.bytes_s / 1e9:g} GB/s"
        shape = native.SimulatedShape(
            memory_bytes=memory_bytes,
            to_device_bytes_s=link.bytes_s,
            to_host_bytes_s=link.to_host_bytes_s or link.bytes_s,
            latency_s=link.latency_s,
            memory_bytes_s=processor.memory_bytes_s or 0,
            launch_s=processor.launch_s,
            num_threads=processor.threads,
            computes=processor.computes,
        )
        self._simulated: int | None = native.new_simulated(shape, self.name, self.description)
        self.address = int(native.device_of_simulated(self._simulated))
        _in_use.add(self._number)

    def counts(self) -> Counts:
        """Return what it holds and did. Raises ClosedError after `close`."""
        found = native.simulated_counts(self._open())
        return Counts(**{name: getattr(found, name) for name in Counts.__dataclass_fields__})

    def fail(self, what: str, nth: int = 1) -> None:
        """Have the `nth` "allocation", "copy", "graph" or "synchronize" from now on fail, 1 being
        the next. A copy or a wait that fails ends the call or the process as on CUDA devices."""
        native.simulated_fail(self._open(), _FAULTS.index(what), nth)

    def close(self) -> None:
        """Take the device out of ggml's registry; may be called twice. Raises ClosedError while a
        model is on it."""
        if self._simulated is None:
            return
        counts = self.counts()
        if counts.used_bytes or counts.num_streams:
            raise ClosedError(
                f"{self.name} holds {format_bytes(counts.used_bytes)} for"
                f" {counts.num_streams} users: close the models on it first"
            )
        native.simulated_delete(self._simulated)
        self._simulated = None
        _in_use.remove(self._number)

    def _open(self) -> int:
        if self._simulated is None:
            raise ClosedError(f"{self.name} is closed: make another device")
        return self._simulated

    def __enter__(self) -> "SimulatedDevice":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
