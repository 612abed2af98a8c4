"""A drive of a known, steady speed: real bytes of a real file, at a fixed rate and latency.

Real drives swing by a factor of four within minutes; this one is a yardstick. First come, first
served, and no credit for idle time. Bytes come from the page cache, which must hold the file.
Copying them costs 0.26 to 0.33 CPU-seconds a GB, waiting included, and as much (0.25 to 0.31) out
of a mapping of the file: it is memory that is slow. A real drive read directly costs 0.13 to 0.19.
"""

import threading
import time
from pathlib import Path

from haversack.devices.storage import Buffer, DirectFile


class SteadyDrive:
    """Gives `bytes_s` bytes a second, each read `latency_s` later than its bytes have passed."""

    def __init__(self, bytes_s: float, latency_s: float = 1e-4) -> None:
        self.bytes_s, self.latency_s = bytes_s, latency_s
        self._lock = threading.Lock()
        self._free_at_s = 0.0

    def open(self, path: Path) -> "SteadyFile":
        """The file at `path`, on this drive."""
        return SteadyFile(path, self)

    def admit(self, num_bytes: int) -> float:
        """Queue a read of `num_bytes`: the moment (of `time.perf_counter`) when it is there."""
        with self._lock:
            start_s = max(time.perf_counter(), self._free_at_s)
            self._free_at_s = start_s + num_bytes / self.bytes_s
            return self._free_at_s + self.latency_s


class SteadyFile(DirectFile):
    """A file whose reads take as long as its drive says."""

    def __init__(self, path: Path, drive: SteadyDrive) -> None:
        super().__init__(path, direct=False)
        self._drive = drive

    def read_into(self, buffer: Buffer, offset: int, need_bytes: int) -> None:
        """As `DirectFile.read_into`, in time."""
        there_at_s = self._drive.admit(len(buffer))
        super().read_into(buffer, offset, need_bytes)
        time.sleep(max(0.0, there_at_s - time.perf_counter()))


def warm(path: Path) -> None:
    """Bring the file into the page cache."""
    buffer = memoryview(bytearray(16 * 1024 * 1024))
    with path.open("rb", buffering=0) as file:
        while file.readinto(buffer):
            pass
