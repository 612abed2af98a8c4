"""How fast memory is read."""

from haversack.devices.memory_speed import memory_bytes_s


def test_memory_is_read_at_some_speed() -> None:
    assert all(1e7 < memory_bytes_s(threads) < 1e13 for threads in (1, 3))
