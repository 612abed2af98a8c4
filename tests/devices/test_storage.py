import errno
import json
import os
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from haversack.devices import storage
from haversack.devices.errors import ClosedError, StorageError
from haversack.devices.memory import PAGE_BYTES, SlotMemory
from haversack.devices.storage import (
    DirectFile,
    DiskSpeed,
    known_speed,
    measure_disk,
    write_at,
    write_whole,
)

MIB = 2**20
FILE_BYTES = 3 * MIB + 1234  # no multiple of a page
SPEED = (
    '{"bytes_s": %s, "latency_s": 0.001, "num_readers": 4, "read_bytes": 1048576, '
    '"enough_readers": 2, "direct": true, '
    '"measured_at": "2024-01-01T00:00:00+00:00"}'
)

SMALL = Path(__file__)  # any small file of odd length

linux = pytest.mark.skipif(sys.platform != "linux", reason="a property of Linux")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "model.gguf"
    path.write_bytes(np.random.default_rng(1).bytes(FILE_BYTES))
    return path


@pytest.fixture(params=[None, False], ids=["direct", "plain"])
def file(path: Path, request: pytest.FixtureRequest) -> Iterator[DirectFile]:
    with DirectFile(path, direct=request.param) as file:
        yield file


@pytest.fixture
def buffer() -> Iterator[npt.NDArray[np.uint8]]:
    with SlotMemory(MIB) as arena:
        yield arena.bytes


def read_padded(file: DirectFile, offset: int, num_bytes: int) -> bytes:
    """Read as experts are read: whole pages, in which the wanted bytes start at the residue."""
    residue = offset % PAGE_BYTES
    need_bytes = residue + num_bytes
    with SlotMemory(need_bytes + -need_bytes % PAGE_BYTES) as arena:
        file.read_into(arena.bytes, offset - residue, need_bytes)
        return arena.bytes[residue : residue + num_bytes].tobytes()


def test_an_open_file_says_how_it_is_read(file: DirectFile, path: Path) -> None:
    assert file.path == path
    assert file.num_bytes == FILE_BYTES
    assert file.reason


@linux
def test_direct_where_the_file_system_allows(path: Path) -> None:
    with DirectFile(path) as file:
        if not file.direct:
            pytest.skip(file.reason)
        assert "O_DIRECT" in file.reason
    with DirectFile(path, direct=False) as plain:
        assert (plain.direct, plain.reason) == (False, "plain reads were asked for")


@pytest.mark.parametrize(
    ("offset", "num_bytes"),
    [(0, 1), (0, 4096), (5000, 900_000), (FILE_BYTES - 1, 1), (FILE_BYTES - 9000, 9000)],
)
def test_bytes_are_those_of_the_file(file: DirectFile, offset: int, num_bytes: int) -> None:
    truth = np.fromfile(file.path, np.uint8)[offset : offset + num_bytes]
    assert read_padded(file, offset, num_bytes) == truth.tobytes()


@settings(max_examples=50, deadline=None)
@given(offset=st.integers(0, 20_000), num_bytes=st.integers(1, 20_000))
def test_any_range_of_a_file(offset: int, num_bytes: int) -> None:
    truth = SMALL.read_bytes()[offset : offset + num_bytes]
    with DirectFile(SMALL) as file:
        if len(truth) == num_bytes:
            assert read_padded(file, offset, num_bytes) == truth
        else:
            with pytest.raises(StorageError, match="the file ends there"):
                read_padded(file, offset, num_bytes)


def test_a_memoryview_serves_as_buffer(
    file: DirectFile, buffer: npt.NDArray[np.uint8], path: Path
) -> None:
    file.read_into(buffer.data[: 2 * PAGE_BYTES], PAGE_BYTES, 2 * PAGE_BYTES)
    assert buffer[: 2 * PAGE_BYTES].tobytes() == path.read_bytes()[PAGE_BYTES : 3 * PAGE_BYTES]
    assert not buffer[2 * PAGE_BYTES :].any()


def test_plain_reads_ask_for_no_alignment(path: Path) -> None:
    odd = np.zeros(1003, np.uint8)[3:]
    with DirectFile(path, direct=False) as file:
        file.read_into(odd, 777, 1000)
    assert odd.tobytes() == path.read_bytes()[777:1777]


def test_eight_readers_at_once(file: DirectFile) -> None:
    truth = np.fromfile(file.path, np.uint8)

    def read(seed: int) -> None:
        rng = np.random.default_rng(seed)
        for _ in range(25):
            offset, num_bytes = int(rng.integers(FILE_BYTES - 70_000)), int(rng.integers(70_000))
            expected = truth[offset : offset + num_bytes].tobytes()
            assert read_padded(file, offset, num_bytes) == expected

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(read, range(8)))


def test_a_file_shorter_than_asked(file: DirectFile, buffer: npt.NDArray[np.uint8]) -> None:
    offset = FILE_BYTES - FILE_BYTES % PAGE_BYTES - PAGE_BYTES
    tail_bytes = FILE_BYTES - offset
    with pytest.raises(StorageError) as caught:
        file.read_into(buffer, offset, tail_bytes + 1)
    for word in (
        str(file.path),
        f"{tail_bytes + 1} bytes",
        f"offset {offset}",
        f"got {tail_bytes}",
    ):
        assert word in str(caught.value)


def test_a_file_cut_after_opening(file: DirectFile, buffer: npt.NDArray[np.uint8]) -> None:
    os.truncate(file.path, 10_000)
    file.read_into(buffer, 0, 10_000)
    with pytest.raises(StorageError, match="wanted 10001 bytes at offset 0, got 10000"):
        file.read_into(buffer, 0, 10_001)
    with pytest.raises(StorageError, match="got 0"):
        file.read_into(buffer, MIB, 1)


def test_an_empty_file(tmp_path: Path, buffer: npt.NDArray[np.uint8]) -> None:
    empty = tmp_path / "empty"
    empty.touch()
    with DirectFile(empty) as file:
        file.read_into(buffer, 0, 0)
        with pytest.raises(StorageError, match="wanted 1 bytes at offset 0, got 0"):
            file.read_into(buffer, 0, 1)


@linux
def test_a_device_error_names_the_read(
    file: DirectFile, buffer: npt.NDArray[np.uint8], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> int:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "preadv", fail)
    with pytest.raises(
        StorageError, match=r"wanted 100 bytes at offset 4096, got 0.*Input/output error"
    ):
        file.read_into(buffer, PAGE_BYTES, 100)


@linux
@pytest.mark.parametrize("most_bytes", [PAGE_BYTES, 10_000])
def test_short_reads_are_continued(
    file: DirectFile,
    buffer: npt.NDArray[np.uint8],
    monkeypatch: pytest.MonkeyPatch,
    most_bytes: int,
) -> None:
    whole = os.preadv
    calls: list[int] = []

    def short(fd: int, views: list[memoryview], offset: int) -> int:
        calls.append(offset)
        return min(whole(fd, views, offset), most_bytes)

    truth = file.path.read_bytes()
    monkeypatch.setattr(os, "preadv", short)
    file.read_into(buffer, PAGE_BYTES, 50_000)
    assert buffer[:50_000].tobytes() == truth[PAGE_BYTES : PAGE_BYTES + 50_000]
    assert len(calls) >= 5
    assert not file.direct or all(offset % PAGE_BYTES == 0 for offset in calls)


def test_a_direct_read_wants_pages(path: Path, buffer: npt.NDArray[np.uint8]) -> None:
    with DirectFile(path) as file:
        if not file.direct:
            pytest.skip(file.reason)
        for view, offset in ((buffer, 1), (buffer[1 : PAGE_BYTES + 1], 0), (buffer[:100], 0)):
            with pytest.raises(ValueError, match="read whole pages"):
                file.read_into(view, offset, 1)


@pytest.mark.parametrize(("offset", "need_bytes"), [(0, MIB + 1), (-PAGE_BYTES, 1), (0, -1)])
def test_an_impossible_request(
    file: DirectFile, buffer: npt.NDArray[np.uint8], offset: int, need_bytes: int
) -> None:
    with pytest.raises(ValueError, match="cannot read"):
        file.read_into(buffer, offset, need_bytes)


def test_a_closed_file(file: DirectFile, buffer: npt.NDArray[np.uint8]) -> None:
    file.close()
    file.close()
    with pytest.raises(ClosedError, match="closed"):
        file.read_into(buffer, 0, 1)


@linux
def test_closing_waits_for_the_reads_under_way(
    file: DirectFile, buffer: npt.NDArray[np.uint8], monkeypatch: pytest.MonkeyPatch
) -> None:
    started, go_on, whole = threading.Event(), threading.Event(), os.preadv

    def slow(fd: int, views: list[memoryview], offset: int) -> int:
        started.set()
        assert go_on.wait(300)
        return whole(fd, views, offset)

    monkeypatch.setattr(os, "preadv", slow)
    with ThreadPoolExecutor(2) as pool:
        reading = pool.submit(file.read_into, buffer, 0, PAGE_BYTES)
        assert started.wait(300)
        closing = pool.submit(file.close)
        assert not wait([closing], timeout=0.05).done
        go_on.set()
        reading.result()
        closing.result()


@pytest.mark.parametrize("direct", [None, False, True])
def test_what_cannot_be_opened(tmp_path: Path, direct: bool | None) -> None:
    with pytest.raises(StorageError, match="not a regular file"):
        DirectFile(tmp_path, direct=direct)
    with pytest.raises(StorageError, match=r"No such file|not found|cannot find"):
        DirectFile(tmp_path / "missing", direct=direct)


@linux
def test_a_pipe_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(StorageError, match="not a regular file"):
        DirectFile(tmp_path / "pipe")


@linux
@pytest.mark.parametrize("refusing", ["open", "preadv"])
def test_refused_direct_reads_fall_back_and_say_so(
    path: Path,
    buffer: npt.NDArray[np.uint8],
    monkeypatch: pytest.MonkeyPatch,
    refusing: str,
) -> None:
    allowed_open = os.open

    def open_plain_only(name: str, flags: int, *more: int) -> int:
        if flags & os.O_DIRECT:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        return allowed_open(name, flags, *more)

    def refuse_read(*_: object) -> int:
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))

    with monkeypatch.context() as patch:
        patch.setattr(os, refusing, open_plain_only if refusing == "open" else refuse_read)
        with pytest.raises(StorageError, match="another drive"):
            DirectFile(path, direct=True)
        file = DirectFile(path)
    with file:
        assert (file.direct, "refuses" in file.reason) == (False, True)
        file.read_into(buffer, 0, MIB)
    assert buffer.tobytes() == path.read_bytes()[:MIB]


@linux
def test_a_broken_drive_is_no_refusal(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> int:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "preadv", fail)
    with pytest.raises(StorageError, match="Input/output error"):
        DirectFile(path)


@pytest.mark.skipif(not Path("/sys/kernel/notes").is_file(), reason="no such kernel file")
def test_a_file_system_without_direct_reads(buffer: npt.NDArray[np.uint8]) -> None:
    with DirectFile("/sys/kernel/notes") as file:
        assert not file.direct
        file.read_into(buffer, 0, file.num_bytes)
        assert buffer[: file.num_bytes].tobytes() == file.path.read_bytes()


@pytest.mark.skipif(not Path("/dev/shm").is_dir(), reason="no memory file system")
def test_a_memory_file_system_reads_either_way(path: Path) -> None:
    """Older kernels refuse direct reads there, newer ones allow them."""
    copy = Path(f"/dev/shm/haversack-test-{os.getpid()}")
    try:
        copy.write_bytes(path.read_bytes())
        with DirectFile(copy) as file:
            assert read_padded(file, 5000, 100_000) == path.read_bytes()[5000:105_000]
    finally:
        copy.unlink(missing_ok=True)


@linux
def test_short_writes_are_continued(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = os.pwrite

    def short(descriptor: int, data: memoryview, offset: int) -> int:
        return whole(descriptor, data[:1000], offset)

    monkeypatch.setattr(os, "pwrite", short)
    with path.open("r+b") as file:
        write_at(file.fileno(), bytes(range(256)) * 20, 7)
    assert path.read_bytes()[7:5127] == bytes(range(256)) * 20
    assert path.stat().st_size == FILE_BYTES


@pytest.mark.parametrize("synced", [False, True])
def test_a_file_is_written_whole_or_not_at_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, synced: bool
) -> None:
    def fail(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    kept = tmp_path / "kept"
    write_whole(kept, b"older", synced=synced)
    with monkeypatch.context() as patch, pytest.raises(OSError, match="No space"):
        patch.setattr(os, "fsync" if synced else "replace", fail)
        write_whole(kept, b"newer", synced=synced)
    assert kept.read_bytes() == b"older"
    write_whole(kept, b"newest", synced=synced)
    assert kept.read_bytes() == b"newest" and list(tmp_path.iterdir()) == [kept]


def test_what_a_killed_process_left_is_removed_by_the_next_write(tmp_path: Path) -> None:
    """But not what another one writes now, nor files of other names."""
    kept = tmp_path / "kept"
    names = ("kept.abcd1234.part", "kept.abcd1235.part", "kept.new_8901.part", "kept.original")
    left, written, new, other = (tmp_path / name for name in names)
    for path in (left, written, new, other):
        path.write_bytes(b"x")
    for path in (left, written, other):
        os.utime(path, (1, 1))
    with written.open("r+b") as file:
        assert storage.host.lock(file.fileno(), wait=False)
        write_whole(kept, b"newest", synced=False)
    assert sorted(tmp_path.iterdir()) == sorted([kept, written, new, other])


def test_a_drive_without_locks_is_written_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> bool:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(storage.host, "lock", refuse)
    left = tmp_path / "kept.abcd1234.part"
    left.write_bytes(b"x")
    os.utime(left, (1, 1))
    write_whole(tmp_path / "kept", b"new", synced=False)
    assert left.exists()  # a process may be writing it


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage, "_CELL_S", 0.01)


@pytest.fixture
def drive_file(tmp_path: Path) -> Path:
    path = tmp_path / "big.gguf"
    path.write_bytes(bytes(16 * MIB))
    return path


@pytest.mark.usefixtures("quick")
def test_a_drive_is_measured_once(drive_file: Path, tmp_path: Path) -> None:
    cache_dir = tmp_path / "cache"
    speed = measure_disk(drive_file, cache_dir=cache_dir)
    assert speed.bytes_s > 0
    assert 0 < speed.latency_s < 5
    assert speed.num_readers in (1, 2, 4, 8)
    assert speed.enough_readers in (1, 2, 4, 8)
    assert speed.read_bytes in (64 * 1024, MIB)
    assert [file.name for file in cache_dir.iterdir()] == [
        f"disk-{os.stat(drive_file).st_dev}.json"
    ]
    assert measure_disk(drive_file, cache_dir=cache_dir) == speed
    assert known_speed(drive_file, cache_dir) == speed
    assert known_speed(drive_file, tmp_path / "nobody measured") is None
    assert measure_disk(drive_file, cache_dir=cache_dir, refresh=True) != speed


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize(
    "damage",
    [
        "",
        "{",
        "[]",
        '{"bytes_s": 1}',
        SPEED % "NaN",
        SPEED % "-1",
        SPEED % '"fast"',
        SPEED % "null",
        "[" * 100_000,
        (SPEED % "1e9").replace('"enough_readers": 2', '"enough_readers": 2000000'),
    ],
)
def test_a_damaged_cache_is_measured_anew(drive_file: Path, tmp_path: Path, damage: str) -> None:
    kept = tmp_path / f"disk-{os.stat(drive_file).st_dev}.json"
    kept.write_text(damage)
    speed = measure_disk(drive_file, cache_dir=tmp_path)
    assert speed.bytes_s > 0
    assert json.loads(kept.read_text())["bytes_s"] == speed.bytes_s


@pytest.mark.usefixtures("quick")
def test_small_files_say_less_or_nothing(tmp_path: Path) -> None:
    small = tmp_path / "small"
    small.write_bytes(bytes(MIB))
    assert measure_disk(small, cache_dir=tmp_path / "cache").read_bytes == 64 * 1024
    assert not (tmp_path / "cache").exists()
    small.write_bytes(bytes(MIB - 1))
    with pytest.raises(StorageError, match="too little to measure"):
        measure_disk(small, cache_dir=tmp_path / "cache")


@pytest.mark.usefixtures("quick")
def test_a_cache_folder_that_cannot_be_written(drive_file: Path) -> None:
    with pytest.raises(StorageError, match=r"cannot keep .* --cache-dir"):
        measure_disk(drive_file, cache_dir=drive_file / "cache")


@pytest.mark.parametrize("bytes_s", [0.0, -1.0, float("nan"), float("inf")])
def test_a_speed_is_a_positive_number(bytes_s: float) -> None:
    with pytest.raises(ValueError, match="not a measured speed"):
        DiskSpeed(bytes_s, 1e-3, 4, MIB, 2, True, "2024-01-01T00:00:00+00:00")
