"""A drive of a known, steady speed: real bytes of a real file, at a fixed rate and latency.

Real drives swing by a factor of four within minutes; this one is a yardstick. First come, first
served, and no credit for idle time. Bytes come from the page cache, which must hold the file, or
from a real drive that is faster. Copying them from the cache costs 0.26 to 0.33 CPU-seconds a GB,
and as much (0.25 to 0.31) out of a mapping of the file: it is memory that is slow. A real drive
read directly costs 0.13 to 0.19.
"""

from pathlib import Path

from haversack.devices.pace import Pace, PacedFile


class SteadyDrive:
    """Gives `bytes_s` bytes a second, each read `latency_s` later than its bytes have passed."""

    def __init__(
        self, bytes_s: float, latency_s: float = 1e-4, *, from_drive: bool = False
    ) -> None:
        """`from_drive`: not out of the page cache; the drive must be faster."""
        self.bytes_s, self.latency_s = bytes_s, latency_s
        self._pace, self._from_drive = Pace(bytes_s, latency_s), from_drive

    def open(self, path: Path) -> PacedFile:
        """The file at `path`, on this drive."""
        return PacedFile(path, self._pace, direct=None if self._from_drive else False)


def is_faster(drive_bytes_s: float, rate_bytes_s: float) -> bool:
    """Whether a drive is fast enough to be held back to a steady rate: by a third."""
    return rate_bytes_s * 4 / 3 <= drive_bytes_s


def warm(path: Path) -> None:
    """Bring the file into the page cache."""
    buffer = memoryview(bytearray(16 * 1024 * 1024))
    with path.open("rb", buffering=0) as file:
        while file.readinto(buffer):
            pass
