"""A drive of a steady speed: real bytes of a real file, at a fixed rate and latency.

Real drives swing by a factor of four within minutes, so they cannot be compared. Reads are served
in the order they come, and idle time gives no credit. Bytes come from the page cache, which must
hold the file, or from a real drive that is faster. Copying them from the cache costs 0.26 to 0.33
CPU-seconds a GB; copying them out of a mapping of the file costs as much (0.25 to 0.31), because
memory is slow. Reading a real drive directly costs 0.13 to 0.19.
"""

import tempfile
from pathlib import Path

from haversack.devices.pace import Pace, PacedFile
from haversack.devices.storage import measure_disk

_SPARE_SPEED = 4 / 3  # a drive that is held back must be faster by this factor


class SteadyDrive:
    """Gives `bytes_s` bytes a second. A read ends `latency_s` after its bytes have passed."""

    def __init__(
        self, bytes_s: float, latency_s: float = 1e-4, *, from_drive: bool = False
    ) -> None:
        """`from_drive`: bytes come from the file's drive, which must be faster, and not out of the
        page cache."""
        self.bytes_s, self.latency_s = bytes_s, latency_s
        self._pace, self._from_drive = Pace(bytes_s, latency_s), from_drive

    def stop_copying(self) -> None:
        """From now on reads take their time alone: rooms keep the bytes that they have."""
        self._pace.set_copies(False)

    def open(self, path: Path) -> PacedFile:
        """Open the file at `path` as one of this drive."""
        return PacedFile(path, self._pace, direct=None if self._from_drive else False)


def drive_bytes_s(path: Path) -> float:
    """Measure the bytes a second that the drive under `path` gives now. Raises StorageError."""
    with tempfile.TemporaryDirectory() as folder:
        return measure_disk(path, cache_dir=Path(folder), refresh=True).bytes_s


def is_faster(drive_bytes_s: float, rate_bytes_s: float) -> bool:
    """Return whether a drive is fast enough to be held back to a steady rate."""
    return rate_bytes_s * _SPARE_SPEED <= drive_bytes_s


def steady_drive(path: Path, bytes_s: float) -> SteadyDrive:
    """Return a steady drive for the file at `path`. Bytes come from the file's own drive if that is
    fast enough; else the file is brought into the page cache. Raises StorageError."""
    from_drive = is_faster(drive_bytes_s(path), bytes_s)
    if not from_drive:
        warm(path)
    return SteadyDrive(bytes_s, from_drive=from_drive)


def warm(path: Path) -> None:
    """Bring the file into the page cache."""
    buffer = memoryview(bytearray(16 * 1024 * 1024))
    with path.open("rb", buffering=0) as file:
        while file.readinto(buffer):
            pass
