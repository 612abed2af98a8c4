"""What only Windows does; scripts/wine runs these tests elsewhere."""

import sys
from pathlib import Path

import numpy as np
import pytest

from haversack.devices.memory import SlotMemory, anonymous_bytes
from haversack.devices.storage import DirectFile
from haversack.devices.system import host

pytestmark = pytest.mark.skipif(sys.platform != "win32", reason="a property of Windows")
MIB = 1024 * 1024


def test_slots_commit_a_part_of_their_addresses() -> None:
    before = anonymous_bytes()
    with SlotMemory(1 << 34, 64 * MIB) as memory:
        memory.bytes[:] = 7
        assert 60 * MIB < anonymous_bytes() - before < 80 * MIB
        memory.resize(4 * MIB)
        assert anonymous_bytes() - before < 20 * MIB
        memory.resize(8 * MIB)
        assert memory.bytes[: 4 * MIB].min() == 7
        assert memory.bytes[4 * MIB :].max() == 0
        assert memory.resident_bytes == 8 * MIB


def test_a_long_path_with_letters_of_many_scripts_is_read(tmp_path: Path) -> None:
    folder = tmp_path
    for _ in range(6):
        folder = folder / ("größe-模型-файл-" + "x" * 40)
    path = Path(getattr(host, "_long_path")(folder / "experts"))  # noqa: B009 only Windows has it
    assert len(str(path)) > 300
    path.parent.mkdir(parents=True)
    path.write_bytes(bytes(range(256)) * 64)
    with SlotMemory(2 * MIB) as room, DirectFile(folder / "experts", direct=True) as file:
        assert "sectors" in file.reason
        file.read_into(room.bytes[:8192], 4096, 8192)
        assert np.array_equal(room.bytes[:8192], np.arange(8192, dtype=np.uint8))


def test_a_file_that_is_read_may_be_removed(tmp_path: Path) -> None:
    path = tmp_path / "experts"
    path.write_bytes(b"old" * 4096)
    with SlotMemory(4096) as room, DirectFile(path) as file:
        path.unlink()
        file.read_into(room.bytes, 0, 4096)
        assert bytes(room.bytes[:3]) == b"old"


def test_one_at_a_time_holds_a_lock_and_others_may_read(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    path.write_bytes(b"text")
    with path.open("rb") as first, path.open("rb") as second:
        assert host.lock(first.fileno(), wait=False)
        assert not host.lock(second.fileno(), wait=False)
        assert second.read() == b"text"
    with path.open("rb") as third:
        assert host.lock(third.fileno(), wait=True)
