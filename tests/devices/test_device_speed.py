"""A device's speed is measured once and kept."""

from pathlib import Path

import pytest

from haversack.devices import device_speed
from haversack.devices.backends import Device, find_device
from haversack.devices.device_speed import DeviceSpeed, known_device_speed, measure_device
from haversack.devices.errors import StorageError


def test_a_device_is_measured_once(rpc_device: Device, tmp_path: Path) -> None:
    assert known_device_speed(rpc_device, tmp_path) is None
    speed = measure_device(rpc_device, cache_dir=tmp_path)
    assert known_device_speed(rpc_device, tmp_path) == speed
    assert measure_device(rpc_device, cache_dir=tmp_path) == speed
    assert speed.call_s < speed.expert_s(1 << 20) < speed.expert_s(1 << 24)


def test_each_device_has_a_speed_of_its_own(rpc_device: Device, tmp_path: Path) -> None:
    measure_device(rpc_device, cache_dir=tmp_path)
    assert known_device_speed(find_device("CPU", tmp_path), tmp_path) is None


@pytest.mark.parametrize("kept", ["", "[]", "{}", '{"call_s": 1}', "[" * 100_000])
def test_a_damaged_file_is_measured_anew(kept: str, tmp_path: Path) -> None:
    cpu = find_device("CPU", tmp_path)
    measure_device(cpu, cache_dir=tmp_path)
    (path,) = tmp_path.iterdir()
    path.write_text(kept)
    assert known_device_speed(cpu, tmp_path) is None
    assert isinstance(measure_device(cpu, cache_dir=tmp_path), DeviceSpeed)


def test_a_folder_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match="cannot keep what was measured"):
        measure_device(find_device("CPU", tmp_path), cache_dir=tmp_path / "file")


def test_a_speed_that_was_not_measured_is_none() -> None:
    with pytest.raises(ValueError, match="not a measured speed"):
        DeviceSpeed(1.0, 1.0, 0.0, 1.0, 1.0, device_speed.__name__)
