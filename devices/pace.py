"""A file on a drive of a steady speed, for benchmarks: real drives vary by a factor of four."""

import time
from pathlib import Path

from haversack.devices._native import own
from haversack.devices.storage import Buffer, DirectFile


class Pace:
    """A drive that gives `bytes_s` bytes a second to all its readers together. A read is done
    `latency_s` after its bytes have passed. Reads are served in order, and idle time earns
    nothing."""

    def __init__(self, bytes_s: float, latency_s: float) -> None:
        self.address = own.pace_new(bytes_s, latency_s)

    def admit(self, num_bytes: int) -> float:
        """Queue a read. Return the moment (of `time.perf_counter`) when it is done."""
        return float(own.pace_admit(self.address, num_bytes))

    def set_copies(self, copies: bool) -> None:
        """Say whether reads of `Readers` bring bytes. Without, a read takes its time, but
        none of the processor's, as on a drive that writes to memory by itself. Not by a ring."""
        own.pace_set_copies(self.address, copies)

    def __del__(self) -> None:
        own.pace_delete(self.address)


class PacedFile(DirectFile):
    """A file whose reads take as long as `pace` says, if its own drive is fast enough."""

    def __init__(self, path: Path, pace: Pace, direct: bool | None = False) -> None:
        """`direct` as of `DirectFile`; by default bytes come from the page cache."""
        super().__init__(path, direct)
        self.pace = pace

    def read_into(self, buffer: Buffer, offset: int, need_bytes: int) -> None:
        """Read as `DirectFile.read_into`, and return when the read is due."""
        there_at_s = self.pace.admit(len(buffer))
        super().read_into(buffer, offset, need_bytes)
        time.sleep(max(0.0, there_at_s - time.perf_counter()))
