"""Doctor: every fact has a source, every problem a remedy."""

from dataclasses import replace
from pathlib import Path

import pytest

from haversack.devices._native import chosen
from haversack.devices._native.builds import Installed
from haversack.devices.backends import Device
from haversack.devices.device_speed import known_device_speed
from haversack.devices.errors import DeviceError, StorageError
from haversack.devices.system.cgroup import CpuQuota
from haversack.edge import doctor
from haversack.edge.cache_dir import modules_folder
from haversack.edge.doctor import Finding, examine


def named(findings: list[Finding], name: str) -> Finding:
    (finding,) = (finding for finding in findings if finding.name == name)
    return finding


def test_every_finding_is_named_once_and_has_a_source(tmp_path: Path) -> None:
    findings = examine(tmp_path, None)
    assert len({finding.name for finding in findings}) == len(findings)
    assert all(finding.shown and finding.source for finding in findings)


def test_a_folder_that_does_not_exist_yet_is_no_problem(tmp_path: Path) -> None:
    findings = examine(tmp_path / "not" / "yet", None)
    assert named(findings, "trunks").value == []
    free = named(findings, "cache_free_bytes")
    assert free.source == f"the drive of {tmp_path}"
    assert free.advice == ""


def test_a_cpu_quota_is_told_with_its_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert named(examine(tmp_path, None), "cpu_quota_cores").source
    monkeypatch.setattr(doctor, "cpu_quota", lambda: CpuQuota(1.5, "/sys/fs/cgroup/cpu.max"))
    finding = named(examine(tmp_path, None), "cpu_quota_cores")
    assert (finding.value, finding.shown) == (1.5, "1.5 cores")
    assert finding.source == "/sys/fs/cgroup/cpu.max"


def test_without_a_gpu_there_is_the_cpu_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor, "list_devices", list)
    assert named(examine(tmp_path, None), "devices").shown == "none but the CPU"


def test_a_device_that_is_named_is_measured_and_kept(
    rpc_device: Device, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor, "modules_folder", lambda _: modules_folder(None))
    findings = examine(tmp_path, None, [rpc_device.name])
    memory = named(findings, f"device_{rpc_device.name}")
    assert memory.value == rpc_device.memory().total_bytes and "free of" in memory.shown
    expert = named(findings, f"device_{rpc_device.name}_expert_s")
    speed = known_device_speed(rpc_device, tmp_path)
    assert speed is not None and expert.value == speed.expert_s(5 << 19)


def test_a_device_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DeviceError, match="there is no device TPU0"):
        examine(tmp_path, None, ["TPU0"])


def test_a_module_that_cannot_be_loaded_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    error = DeviceError("cannot load libggml-vulkan.so: libvulkan.so.1 is missing")
    monkeypatch.setattr(doctor.modules, "load_gpus", lambda _: [error])
    finding = named(examine(tmp_path, None), "gpu_modules")
    assert finding.value is False and "libvulkan.so.1" in finding.source


def test_an_unmeasured_drive_says_how_to_measure_it(tmp_path: Path) -> None:
    finding = named(examine(tmp_path, None), "disk_bytes_s")
    assert finding.value is None
    assert "haversack doctor --model FILE" in finding.advice


def test_a_model_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=r"gone\.gguf"):
        examine(tmp_path, tmp_path / "gone.gguf")


def test_the_builds_of_llama_cpp_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    finding = named(examine(tmp_path, None), "llama_build")
    assert finding.value == chosen.build.package
    assert f"{chosen.build.version}: ggml {chosen.build.ggml}" in finding.shown
    gone = Installed(chosen.build, None, "", "it is not installed")
    old = Installed(replace(chosen.build, package="a-b"), tmp_path, "0.1", "its version is 0.1")
    monkeypatch.setattr(doctor.builds, "installed", lambda: [gone, old])
    findings = examine(tmp_path, None)
    missing = named(findings, chosen.build.package.replace("-", "_"))
    assert (missing.value, missing.shown, missing.advice) == (None, "not installed", "")
    assert missing.source == f"`pip install {chosen.build.package}=={chosen.build.version}`"
    refused = named(findings, "a_b")
    assert (refused.value, refused.shown) == ("0.1", "0.1, cannot be used")
    assert refused.advice == "its version is 0.1"


def test_a_library_built_for_less_than_the_cpu_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    able = frozenset({"fpu", "fma", "avx2", "avx512f"})
    monkeypatch.setattr(doctor, "instruction_sets", lambda: able)
    monkeypatch.setattr(doctor, "system_info", lambda: "CPU : FMA = 1 | AVX2 = 1 | ")
    finding = named(examine(tmp_path, None), "instruction_sets")
    assert finding.value == ["FMA", "AVX2"]
    assert "this CPU has AVX512, llama.cpp was built without" in finding.advice


def test_threads_that_cannot_adapt_say_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "why_fixed", lambda: "OMP_WAIT_POLICY is set: unset it")
    finding = named(examine(tmp_path, None), "adapting_threads")
    assert finding.value is False and "unset it" in finding.advice
