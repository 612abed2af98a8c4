"""The checksum: equal bytes give equal digests in pieces of any size, other bytes do not."""

import random
from pathlib import Path

import numpy as np
import pytest

from haversack.devices._native import address_of
from haversack.devices.checksum import DIGEST_BYTES, Checksum
from haversack.devices.errors import StorageError

DATA = random.Random(0).randbytes(300_000)


def digest(data: bytes, seed: bytes = b"seed") -> bytes:
    checksum = Checksum(seed)
    checksum.add(data)
    return checksum.digest()


def test_the_pieces_do_not_matter() -> None:
    rng = random.Random(1)
    for _ in range(20):
        checksum, start = Checksum(b"seed"), 0
        while start < len(DATA):
            end = start + rng.choice([1, 7, 63, 64, 65, 1000, 100_000])
            checksum.add(DATA[start:end])
            start = end
        assert checksum.digest() == digest(DATA)
    assert len(digest(DATA)) == DIGEST_BYTES


def test_the_order_and_the_seed_matter() -> None:
    first, second = DATA[:1000], DATA[1000:2000]
    found = {
        digest(first + second),
        digest(second + first),
        digest(first),
        digest(first + second, seed=b"another"),
    }
    assert len(found) == 4


def test_every_flipped_bit_is_seen() -> None:
    data, whole = bytearray(DATA[:200]), digest(DATA[:200])
    for bit in range(8 * len(data)):
        data[bit // 8] ^= 1 << bit % 8
        assert digest(bytes(data)) != whole
        data[bit // 8] ^= 1 << bit % 8
    assert digest(bytes(data)) == whole


@pytest.mark.parametrize("fill", [0, 0xFF])
def test_overwritten_parts_are_seen(fill: int) -> None:
    rng, found = random.Random(2), {digest(DATA)}
    for _ in range(50):
        start = rng.randrange(len(DATA) - 64)
        end = rng.randrange(start + 64, len(DATA))
        found.add(digest(DATA[:start] + bytes([fill]) * (end - start) + DATA[end:]))
    assert len(found) == 51


def test_swapped_words_are_seen() -> None:
    swapped = DATA[64:128] + DATA[:64] + DATA[128:]
    within_a_lane = DATA[64:72] + DATA[8:64] + DATA[:8] + DATA[72:]
    assert len({digest(DATA), digest(swapped), digest(within_a_lane)}) == 3


@pytest.mark.parametrize(("offset", "num_bytes"), [(0, 300_000), (1, 64), (4097, 200_001), (5, 0)])
def test_a_file_and_memory_give_what_their_bytes_give(
    offset: int, num_bytes: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, expected = tmp_path / "data", Checksum(b"seed")
    path.write_bytes(DATA)
    array = np.frombuffer(DATA, np.uint8)
    expected.add_memory(address_of(array) + offset, num_bytes)
    for step_bytes in (100_000, 64 * 1024 * 1024):
        monkeypatch.setattr("haversack.devices.checksum._STEP_BYTES", step_bytes)
        checksum = Checksum(b"seed")
        with path.open("rb") as file:
            checksum.add_file(file, offset, num_bytes)
        assert checksum.digest() == expected.digest()


def test_a_file_that_is_too_short_or_cannot_be_read(tmp_path: Path) -> None:
    path = tmp_path / "data"
    path.write_bytes(DATA)
    with path.open("rb") as file, pytest.raises(StorageError, match="it ends before byte 300001"):
        Checksum(b"").add_file(file, 1, 300_000)
    with path.open("ab") as file, pytest.raises(StorageError, match="cannot be read: Bad file"):
        Checksum(b"").add_file(file, 0, 10)
