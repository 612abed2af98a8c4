"""The model's files, opened for reading experts, and their readers.

A pass waits for a demand read, not for a prefetch. Prefetches begin only while no demand read
waits, and few at a time, so that a demand read finds the drive almost free.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

from haversack.devices.readers import Readers
from haversack.devices.storage import DirectFile

NUM_READERS = 4  # on a drive that was not measured; a measured speed has its own number
PREFETCH_READERS = 2  # at most, because a demand read may have to wait for these

OpenFile = Callable[[Path], DirectFile]


class ExpertFiles:
    """Opens the files; `readers` reads them. Raises StorageError if a file cannot be opened."""

    def __init__(
        self,
        paths: Sequence[Path],
        num_readers: int = NUM_READERS,
        open_file: OpenFile = DirectFile,
    ) -> None:
        self._files: list[DirectFile] = []
        try:
            for path in paths:
                self._files.append(open_file(path))
        except BaseException:
            self._close_files()
            raise
        self.readers = Readers(self._files, num_readers, PREFETCH_READERS)

    @property
    def direct(self) -> bool:
        """Return whether reads bypass the page cache."""
        return all(file.direct for file in self._files)

    @property
    def bytes_read(self) -> int:
        return int(self.readers.counts().bytes_read)

    @property
    def busy_s(self) -> float:
        """Return the seconds in which at least one read was under way."""
        return float(self.readers.counts().busy_s)

    @property
    def wait_s(self) -> float:
        """Return the seconds that the model waited for reads."""
        return float(self.readers.counts().wait_s)

    def _close_files(self) -> None:
        for file in self._files:
            file.close()

    def close(self) -> None:
        """Wait for the reads under way and close the files; no thread is left behind. May be
        called twice."""
        self.readers.close()
        self._close_files()
