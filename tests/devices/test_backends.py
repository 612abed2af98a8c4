"""Devices are found by their names, and what brings them is loaded only when one is named."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from haversack.devices import modules
from haversack.devices._native import backends as native
from haversack.devices._native import chosen
from haversack.devices.backends import CPU, GPU, Device, find_device, list_devices
from haversack.devices.errors import DeviceError


def test_the_cpu_is_a_device_with_the_computers_memory(tmp_path: Path) -> None:
    cpu = find_device("CPU", tmp_path)
    assert cpu.kind == CPU and cpu.description
    free_bytes, total_bytes = cpu.memory()
    assert 0 < free_bytes <= total_bytes


def test_our_own_device_is_none_of_theirs() -> None:
    assert "Experts" not in [device.name for device in list_devices()]


def test_an_unknown_device_names_those_that_are_there(tmp_path: Path) -> None:
    with pytest.raises(
        DeviceError, match=r"no device TPU0: give one of .*CPU.*\(CUDA0, Vulkan0, RPC"
    ):
        find_device("TPU0", tmp_path)


@pytest.mark.parametrize(("name", "backend"), modules.DEVICES.items())
def test_a_backend_that_is_missing_says_how_to_get_it(
    name: str, backend: str, tmp_path: Path
) -> None:
    there = [each.backend for each in modules.list_modules(tmp_path)]
    if native.ggml_backend_reg_by_name(backend.encode()) or backend in there:
        pytest.skip(f"this build of llama.cpp has {backend}")
    with pytest.raises(DeviceError, match=f"the backend {backend} is not there: ") as caught:
        find_device(name, tmp_path)
    assert "\n" not in str(caught.value)
    if chosen.build.package == "llama-cpp-python":
        assert f"`haversack backend build {backend}` makes it" in str(caught.value)


def test_no_module_is_loaded_before_it_is_asked_for(tmp_path: Path) -> None:
    there = modules.build_dir(tmp_path) / modules.file_name(modules.RPC)
    there.parent.mkdir()
    there.touch()
    program = """
import sys
from pathlib import Path
from haversack.devices import modules
from haversack.devices._native import backends
from haversack.devices.backends import list_devices
list_devices()
for module in modules.list_modules(Path(sys.argv[1])):
    print(module.backend, backends.ggml_backend_reg_by_name(module.backend.encode()))
"""
    command = [sys.executable, "-c", program, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    found = done.stdout.splitlines()
    assert "rpc None" in found or chosen.build.module_dir is None
    assert all(line.endswith(" None") for line in found)


# ------------------------------------------------------------------------ RPC
def test_a_server_lends_a_device(rpc_device: Device, modules_dir: Path) -> None:
    assert rpc_device.kind == GPU
    free_bytes, total_bytes = rpc_device.memory()
    assert 0 < free_bytes <= total_bytes
    assert rpc_device in list_devices()
    assert find_device(rpc_device.name, modules_dir) == rpc_device


def test_a_server_has_one_device(rpc_device: Device, modules_dir: Path) -> None:
    name = rpc_device.name.replace("RPC[", "RPC1[")
    with pytest.raises(DeviceError, match=r"has no device 1: give one of RPC\[127"):
        find_device(name, modules_dir)


def test_a_server_that_is_gone_is_listed_no_more(
    start_rpc_server: Callable[..., Any], modules_dir: Path
) -> None:
    """ggml would end the process where the server's memory is asked for."""
    server = start_rpc_server()
    device = find_device(server.name, modules_dir)
    assert device in list_devices() and device.memory().total_bytes > 0
    server.kill()
    assert device not in list_devices()


def test_a_server_that_is_gone_is_told_in_one_line(
    start_rpc_server: Callable[..., Any], modules_dir: Path
) -> None:
    server = start_rpc_server()
    find_device(server.name, modules_dir).memory()
    server.kill()
    with pytest.raises(DeviceError, match=r"no RPC server at 127.*haversack backend serve 127"):
        find_device(server.name, modules_dir)
