"""KV files: what was written is read, and what is damaged is refused."""

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from haversack.devices.errors import StorageError
from haversack.offload.kv_file import KvAbout, opened_kv, read_about, write_kv

ABOUT = KvAbout({"model": "a", "--threads": "2"}, [5, 6, 7], [2, 3])
STATE = np.random.default_rng(0).integers(0, 256, 10_000).astype(np.uint8)


def filled(into: np.ndarray) -> None:
    into[:] = STATE


@pytest.fixture
def path(tmp_path: Path) -> Path:
    write_kv(tmp_path / "a.kv", ABOUT, len(STATE), filled)
    return tmp_path / "a.kv"


def test_what_was_written_is_read(path: Path) -> None:
    assert read_about(path) == ABOUT
    with opened_kv(path) as (about, state):
        assert about == ABOUT
        assert np.array_equal(state, STATE)
    assert os.listdir(path.parent) == ["a.kv"]


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda data: data[:-1], "its length is wrong"),
        (lambda data: data + b"x", "its length is wrong"),
        (lambda data: data[:200] + bytes([data[200] ^ 1]) + data[201:], "checksum is wrong"),
        (lambda data: data[:-20] + bytes(12) + data[-8:], "checksum is wrong"),
        (lambda data: data.replace(b'"haversack_kv": 1', b'"haversack_kv": 2'), "version is 2"),
        (lambda _: b"\xff" * 100, "can't decode byte"),
        (lambda _: b"[1]\n", "list indices"),
        (lambda _: b"", "Expecting value"),
    ],
)
def test_what_is_damaged_is_refused(
    damage: Callable[[bytes], bytes], said: str, path: Path
) -> None:
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(StorageError, match=said), opened_kv(path):
        pass
    if "checksum" not in said:
        with pytest.raises(StorageError, match=rf"a.kv is damaged or holds no KV cache: .*{said}"):
            read_about(path)


def test_a_write_that_fails_leaves_the_older_file(path: Path) -> None:
    def fail(_: np.ndarray) -> None:
        raise StorageError("no")

    with pytest.raises(StorageError, match="no"):
        write_kv(path, KvAbout({}, [], []), 100, fail)
    assert read_about(path) == ABOUT
    assert os.listdir(path.parent) == ["a.kv"]
    with pytest.raises(StorageError, match=r"cannot keep the KV cache in .*: Not a directory"):
        write_kv(path / "x", ABOUT, 100, filled)
    with pytest.raises(StorageError, match="cannot read the KV cache"):
        read_about(path.parent / "missing")


def test_what_decided_the_bits_is_compared() -> None:
    assert not ABOUT.difference({"model": "a", "--threads": "2"})
    assert ABOUT.difference({"model": "a", "--threads": "4"}) == "its --threads is 2, and 4 now"
    more, less = dict(ABOUT.bits) | {"--vram": "CUDA0=8 (free)"}, {"model": "a"}
    assert ABOUT.difference(more) == "its --vram is not given, and CUDA0=8 (free) now"
    assert ABOUT.difference(less) == "its --threads is 2, and not given now"
