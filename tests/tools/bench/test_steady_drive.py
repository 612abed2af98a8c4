"""A drive of a known speed: right bytes, never early, first come first served."""

import threading
import time
from pathlib import Path

import numpy as np
import pytest

from haversack.devices.errors import ClosedError, StorageError
from haversack.tools.bench.steady_drive import SteadyDrive, warm

NUM_BYTES = 1 << 20


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "bytes"
    path.write_bytes(np.random.default_rng(0).bytes(NUM_BYTES))
    warm(path)
    return path


def test_reads_bring_the_bytes_and_take_their_time(path: Path) -> None:
    with SteadyDrive(bytes_s=50e6, latency_s=0.005).open(path) as file:
        buffer = np.zeros(NUM_BYTES, np.uint8)
        start_s = time.perf_counter()
        file.read_into(buffer, 0, NUM_BYTES)
        assert time.perf_counter() - start_s >= NUM_BYTES / 50e6 + 0.005
    assert buffer.tobytes() == path.read_bytes()


def test_readers_share_the_rate_and_idle_time_earns_nothing(path: Path) -> None:
    with SteadyDrive(bytes_s=50e6).open(path) as file:
        time.sleep(0.05)  # a drive with burst credit would now be ahead
        buffers = [np.zeros(NUM_BYTES, np.uint8) for _ in range(4)]
        threads = [
            threading.Thread(target=file.read_into, args=(buffer, 0, NUM_BYTES))
            for buffer in buffers
        ]
        start_s = time.perf_counter()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert time.perf_counter() - start_s >= 4 * NUM_BYTES / 50e6


def test_it_ends_and_closes_as_files_do(path: Path) -> None:
    buffer = np.zeros(8192, np.uint8)
    with SteadyDrive(bytes_s=1e9).open(path) as file:
        file.read_into(buffer, NUM_BYTES - 4096, 4096)
        assert buffer[:4096].tobytes() == path.read_bytes()[-4096:]
        with pytest.raises(StorageError, match="the file ends there"):
            file.read_into(buffer, NUM_BYTES - 4096, 4097)
    with pytest.raises(ClosedError):
        file.read_into(buffer, 0, 1)
