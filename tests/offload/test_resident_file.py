"""A saved file is read back as it was, or not at all."""

import logging
from pathlib import Path

import numpy as np
import pytest

from haversack.offload.resident_file import Residents, read_residents, save_residents
from haversack.quant.trunk import resident_path

SAVED = Residents(
    experts=[(5, 3), (0, 31), (5, 0)],
    memories=[{"uses": np.array([0.0, 1 / 3, 1e300]), "clock": np.array([7.0])}, {}],
)


@pytest.fixture
def trunk(tmp_path: Path) -> Path:
    path = tmp_path / f"{'1' * 12}-{'a' * 20}.gguf"
    path.write_bytes(b"the trunk")
    return path


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_what_is_saved_comes_back(trunk: Path) -> None:
    save_residents(trunk, SAVED)
    found = read_residents(trunk)
    assert found is not None
    assert found.experts == SAVED.experts
    assert [memory.keys() for memory in found.memories] == [{"uses", "clock"}, set()]
    for name, values in SAVED.memories[0].items():
        np.testing.assert_array_equal(found.memories[0][name], values)
    assert names(trunk.parent) == {trunk.name, resident_path(trunk).name}


def test_nothing_saved_is_nothing_said(trunk: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert read_residents(trunk) is None
    assert not caplog.records


def test_any_bit_that_flips_is_noticed(trunk: Path, caplog: pytest.LogCaptureFixture) -> None:
    save_residents(trunk, SAVED)
    path = resident_path(trunk)
    whole = path.read_bytes()
    for place in range(0, len(whole), 7):
        damaged = bytearray(whole)
        damaged[place] ^= 1 << place % 8
        path.write_bytes(damaged)
        assert read_residents(trunk) is None
    for length in (0, 1, 64, 65, len(whole) - 1):
        path.write_bytes(whole[:length])
        assert read_residents(trunk) is None
    assert "it is damaged or was written for another model" in caplog.text
    path.write_bytes(whole)
    assert read_residents(trunk) is not None


def test_another_models_file_is_not_taken(trunk: Path) -> None:
    save_residents(trunk, SAVED)
    changed = trunk.with_name(f"{'1' * 12}-{'b' * 20}.gguf")  # the same path, a newer model
    changed.write_bytes(b"its trunk")
    resident_path(trunk).rename(resident_path(changed))
    assert read_residents(changed) is None


def test_what_cannot_be_saved_is_logged(trunk: Path, caplog: pytest.LogCaptureFixture) -> None:
    resident_path(trunk).mkdir()  # in the way
    with caplog.at_level(logging.WARNING, "haversack"):
        save_residents(trunk, SAVED)
    assert "cannot save which experts were used" in caplog.text
    assert names(trunk.parent) == {trunk.name, resident_path(trunk).name}
    assert read_residents(trunk) is None


def test_a_disk_that_is_full_leaves_the_older_file(
    trunk: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    save_residents(trunk, SAVED)
    older = resident_path(trunk).read_bytes()

    def full(*_: object) -> None:
        raise OSError(28, "no space left on device")

    monkeypatch.setattr("haversack.devices.storage.os.replace", full)
    save_residents(trunk, Residents([], []))
    assert "no space left" in caplog.text
    assert resident_path(trunk).read_bytes() == older
    assert names(trunk.parent) == {trunk.name, resident_path(trunk).name}


def test_nothing_is_saved_for_a_trunk_that_is_gone(trunk: Path) -> None:
    trunk.unlink()
    save_residents(trunk, SAVED)
    assert names(trunk.parent) == set()
