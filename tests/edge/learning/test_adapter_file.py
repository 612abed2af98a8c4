"""The adapter file: what is written is read again, and nothing else is."""

from pathlib import Path

import numpy as np
import pytest

from haversack.devices.errors import ModelFileError
from haversack.edge.learning.adapter_file import Floats, read_adapter, write_adapter


@pytest.fixture
def changes() -> dict[str, Floats]:
    values = np.random.default_rng(1)
    return {
        "blk.0.attn_q.weight.lora_a": values.normal(size=(32, 5)).astype(np.float32),
        "blk.0.attn_q.weight.lora_b": values.normal(size=(7, 32)).astype(np.float32),
    }


def test_what_is_written_is_read_again(tmp_path: Path, changes: dict[str, Floats]) -> None:
    """In halves of the bits."""
    path = tmp_path / "new" / "learnt.adapter"
    write_adapter(path, "qwen3", "a pair", changes)
    found = read_adapter(path, "a pair")
    assert list(found) == list(changes)
    for name, values in changes.items():
        np.testing.assert_array_equal(found[name], values.astype(np.float16).astype(np.float32))
    assert [each.name for each in path.parent.iterdir()] == ["learnt.adapter"]


def test_another_pairs_is_not_used(tmp_path: Path, changes: dict[str, Floats]) -> None:
    path = tmp_path / "learnt.adapter"
    write_adapter(path, "qwen3", "a pair", changes)
    with pytest.raises(ValueError, match="another drafter"):
        read_adapter(path, "another pair")


@pytest.mark.parametrize("place", [-1, -300, 10])
def test_a_damaged_one_is_not_used(place: int, tmp_path: Path, changes: dict[str, Floats]) -> None:
    path = tmp_path / "learnt.adapter"
    write_adapter(path, "qwen3", "a pair", changes)
    data = bytearray(path.read_bytes())
    data[place] ^= 85
    path.write_bytes(data)
    with pytest.raises((ValueError, ModelFileError)):
        read_adapter(path, "a pair")
    path.write_bytes(data[:-40])
    with pytest.raises((ValueError, ModelFileError)):
        read_adapter(path, "a pair")
