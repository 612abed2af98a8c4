"""What haversack finds on this computer. Each fact has its source, each problem a remedy."""

import os
import platform
import re
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import psutil

from haversack.devices import modules
from haversack.devices._native import builds, chosen
from haversack.devices.backends import CPU, Device, find_device, list_devices
from haversack.devices.cores import count_cores
from haversack.devices.device_speed import measure_device
from haversack.devices.llama import system_info
from haversack.devices.memory import HUGE_PAGE_BYTES, SlotMemory, probe_ram
from haversack.devices.processor import instruction_sets
from haversack.devices.storage import DirectFile, measure_disk
from haversack.devices.system.cgroup import cpu_quota, why_not
from haversack.devices.team import why_fixed
from haversack.devices.units import format_bytes
from haversack.edge.cache_dir import modules_folder
from haversack.edge.loading import builtin_model
from haversack.quant.trunk import list_trunks

Value = str | int | float | bool | list[str] | None

# Linux's names of instruction sets, and llama.cpp's for the same.
_FAST_SETS = {"avx2": "AVX2", "fma": "FMA", "f16c": "F16C", "avx512f": "AVX512"}
_TIGHT_BYTES = 2 << 30
_EXPERT_BYTES = 5 << 19  # about an expert of Qwen3-30B-A3B in Q4_K
_TESTED = {
    "linux": "tested",
    "win32": "tested under wine only, never on Windows itself: memory, files, readers, models",
    "darwin": "not tested on this system: the library was compiled and never ran",
}


@dataclass(frozen=True)
class Finding:
    """One fact: `value` is for programs, `shown` for people; `advice` says what should be done, if
    anything."""

    name: str
    value: Value
    shown: str
    source: str
    advice: str = ""


def examine(cache_dir: Path, model: Path | None, devices: Sequence[str] = ()) -> list[Finding]:
    """Return all findings; those about the drive are measured with `model` if one is given, and
    `devices` besides the GPUs.

    Raises StorageError if `model` cannot be read, and DeviceError for a device that is not there.
    """
    return [
        *_versions(),
        *_builds(),
        *_memory(),
        *_processor(),
        *_cache(cache_dir),
        _disk_speed(cache_dir, model),
        _direct_reads(model or builtin_model()),
        _huge_pages(),
        _provable_budgets(),
        *_modules(modules_folder(cache_dir)),
        *_devices(cache_dir, devices),
    ]


def _versions() -> list[Finding]:
    found = [
        ("haversack", version("haversack"), "installed package"),
        ("python", platform.python_version(), sys.executable),
        ("system", platform.platform(), "platform.platform()"),
    ]
    tested = _TESTED.get(sys.platform, "not tested on this system")
    return [
        *(Finding(name, value, value, source) for name, value, source in found),
        Finding("tested", sys.platform == "linux", tested, f"releases on {sys.platform}"),
    ]


def _builds() -> list[Finding]:
    """Return the build of llama.cpp that is used, and what is installed of each."""
    build, named = chosen.build, os.environ.get(builds.VARIABLE)
    shown = f"{build.package} {build.version}: ggml {build.ggml}, interface {build.api_version}"
    source = f"--llama-build or {builds.VARIABLE}" if named else "the fastest that can be used"
    return [
        Finding("llama_build", build.package, shown, source),
        Finding("ggml", build.ggml, build.ggml, "the library loaded"),
        *(_installed_build(each) for each in builds.installed()),
    ]


def _installed_build(found: builds.Installed) -> Finding:
    name = found.build.package.replace("-", "_")
    if found.folder is None:
        return Finding(name, None, "not installed", f"`{found.build.command}`")
    shown = f"{found.version}, cannot be used" if found.refusal else found.version
    return Finding(name, found.version, shown, str(found.folder), found.refusal)


def _memory() -> list[Finding]:
    ram = probe_ram()
    tight = "close other programs" if ram.available_bytes < _TIGHT_BYTES else ""
    limit_bytes = ram.limit_bytes
    limit = "none" if limit_bytes is None else format_bytes(limit_bytes)
    return [
        Finding("ram_total_bytes", ram.total_bytes, format_bytes(ram.total_bytes), "the system"),
        Finding(
            "ram_available_bytes",
            ram.available_bytes,
            format_bytes(ram.available_bytes),
            ram.source,
            tight,
        ),
        Finding("cgroup_limit_bytes", limit_bytes, limit, "control groups from ours to the root"),
    ]


def _processor() -> list[Finding]:
    physical, usable = psutil.cpu_count(logical=False), count_cores()
    quota = cpu_quota()
    built = re.findall(r"(\w+) = 1", system_info())
    able = instruction_sets() or frozenset()
    missing = [name for cpu, name in _FAST_SETS.items() if cpu in able and name not in built]
    native = builds.llama_cpp_python.BUILD
    remedy = (
        f"this CPU has {', '.join(missing)}, llama.cpp was built without; to compile it here: `pip"
        f" install --force-reinstall --no-binary {native.package} --no-cache-dir"
        f" {native.package}=={native.version}`"
    )
    return [
        Finding("cores", physical, str(physical or "unknown"), "psutil, physical cores"),
        Finding(
            "cpu_quota_cores",
            None if quota is None else quota.num_cores,
            "none" if quota is None else f"{quota.num_cores:.3g} cores",
            "control groups from ours to the root" if quota is None else quota.source,
        ),
        Finding("usable_cores", usable.num_cores, str(usable.num_cores), usable.source),
        _adapting_threads(),
        Finding(
            "instruction_sets",
            built,
            " ".join(built),
            "llama_print_system_info",
            remedy if missing else "",
        ),
    ]


def _adapting_threads() -> Finding:
    why = why_fixed()
    shown = "no" if why else "yes, while others use the processors"
    return Finding("adapting_threads", not why, shown, "the threads that compute", why)


def _cache(cache_dir: Path) -> list[Finding]:
    trunks = list_trunks(cache_dir)
    models = [trunk.model for trunk in trunks]
    trunk_bytes = sum(trunk.disk_bytes for trunk in trunks)
    nearest = next(folder for folder in (cache_dir, *cache_dir.parents) if folder.is_dir())
    free_bytes = shutil.disk_usage(nearest).free
    writable = os.access(nearest, os.W_OK)
    remedy = f"{nearest} cannot be written: choose another folder with --cache-dir"
    source = f"files in {cache_dir}"
    return [
        Finding("cache_dir", str(cache_dir), str(cache_dir), "--cache-dir or the user's cache"),
        Finding("trunks", models, "; ".join(models) or "none yet", source),
        Finding("trunks_disk_bytes", trunk_bytes, format_bytes(trunk_bytes), source),
        Finding(
            "cache_free_bytes",
            free_bytes,
            format_bytes(free_bytes),
            f"the drive of {nearest}",
            "" if writable else remedy,
        ),
    ]


def _disk_speed(cache_dir: Path, model: Path | None) -> Finding:
    if model is None:
        return Finding(
            "disk_bytes_s",
            None,
            "not measured",
            "reads of a model file",
            "give a model on the drive you will use: haversack doctor --model FILE",
        )
    speed = measure_disk(model, cache_dir=cache_dir)
    kind = "direct" if speed.direct else "plain, maybe from the page cache"
    return Finding(
        "disk_bytes_s",
        speed.bytes_s,
        f"{format_bytes(int(speed.bytes_s))}/s",
        f"{model}: {speed.num_readers} readers of {format_bytes(speed.read_bytes)}, {kind}, at"
        f" {speed.measured_at}; streaming keeps {speed.enough_readers} under way",
    )


def _direct_reads(path: Path) -> Finding:
    with DirectFile(path) as file:
        direct, reason = file.direct, file.reason
    remedy = "reads go through the page cache, which costs memory: put models on another drive"
    shown = "yes" if direct else "no"
    return Finding("direct_io", direct, shown, f"{path}: {reason}", "" if direct else remedy)


def _huge_pages() -> Finding:
    with SlotMemory(HUGE_PAGE_BYTES) as arena:
        granted = arena.huge_pages
    remedy = "reads are slower without: echo madvise > /sys/kernel/mm/transparent_hugepage/enabled"
    if sys.platform != "linux":
        remedy = ""
    shown = "yes" if granted else "no"
    return Finding("huge_pages", granted, shown, "madvise of an arena", "" if granted else remedy)


# -------------------------------------------------------------------- devices
def _modules(folder: Path) -> list[Finding]:
    """Return the modules that there are, and why one of a GPU cannot be loaded."""
    names = [each.backend for each in modules.list_modules(folder)]
    source = f"modules for {chosen.build.package}, see haversack backend"
    return [
        Finding("backend_modules", names, ", ".join(names) or "none", source),
        *(
            Finding("gpu_modules", False, "one cannot be loaded", str(error))
            for error in modules.load_gpus(folder)
        ),
    ]


def _devices(cache_dir: Path, named: Sequence[str]) -> list[Finding]:
    """Return what is known of GPUs, and of devices that were named; each is measured once."""
    others = [find_device(name, modules_folder(cache_dir)) for name in named]
    gpus = [each for each in list_devices() if each.kind != CPU and each not in others]
    return [finding for device in (*gpus, *others) for finding in _device(device, cache_dir)] or [
        Finding("devices", None, "none but the CPU", "ggml's backends")
    ]


def _device(device: Device, cache_dir: Path) -> list[Finding]:
    free_bytes, total_bytes = device.memory()
    speed = measure_device(device, cache_dir=cache_dir)
    memory = f"{format_bytes(free_bytes)} free of {format_bytes(total_bytes)}"
    rates = [
        f"{format_bytes(int(rate))}/s" for rate in (speed.to_device_bytes_s, speed.to_host_bytes_s)
    ]
    expert_s = speed.expert_s(_EXPERT_BYTES)
    return [
        Finding(
            f"device_{device.name}", total_bytes, memory, f"{device.kind}: {device.description}"
        ),
        Finding(
            f"device_{device.name}_expert_s",
            expert_s,
            f"{expert_s * 1e3:.3g} ms for an expert of {format_bytes(_EXPERT_BYTES)}",
            f"{rates[0]} there, {rates[1]} back, {speed.latency_s * 1e6:.3g} us for both of a short"
            f" copy, at {speed.measured_at}",
        ),
    ]


def _provable_budgets() -> Finding:
    """Return whether a control group can be made whose hard limit proves a budget."""
    reason = why_not()
    shown, source = ("no", reason) if reason else ("yes", "a control group made and removed")
    return Finding("cgroup_budgets", not reason, shown, source)
