"""Builds haversack's packages with scikit-build-core. Where the system has no C++ compiler that can
do it, or `-C cmake.define.HAVERSACK_TARGET=x86_64-windows-gnu` asks for another system's wheel, the
compiler of the package ziglang does it, which the installer brings for the time of the build."""

import os
import platform
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

from scikit_build_core import build
from scikit_build_core.build import (
    build_sdist,
    get_requires_for_build_sdist,
    prepare_metadata_for_build_editable,
    prepare_metadata_for_build_wheel,
)

__all__ = [
    "build_editable",
    "build_sdist",
    "build_wheel",
    "get_requires_for_build_editable",
    "get_requires_for_build_sdist",
    "get_requires_for_build_wheel",
    "prepare_metadata_for_build_editable",
    "prepare_metadata_for_build_wheel",
]

ZIG = "ziglang==0.17.0"

Settings = dict[str, str | list[str]]

_TARGET = "cmake.define.HAVERSACK_TARGET"
_SYSTEMS = {"linux": "linux-gnu.2.17", "darwin": "macos.13.0", "win32": "windows-gnu"}
_MACHINES = {"amd64": "x86_64", "arm64": "aarch64"}


def has_compiler() -> bool:
    """Return whether this system's compiler can build haversack. Microsoft's cannot."""
    if sys.platform == "win32":
        return False
    if sys.platform == "darwin":  # each Mac has a c++, which may only ask for the tools
        tools = subprocess.run(["xcode-select", "-p"], capture_output=True, check=False)
        return tools.returncode == 0
    named = shlex.split(os.environ.get("CXX", ""))
    return any(map(shutil.which, named[:1] or ["c++", "g++", "clang++"]))


def own_target() -> str:
    """Return zig's name of this system."""
    machine = platform.machine().lower()
    return f"{_MACHINES.get(machine, machine)}-{_SYSTEMS[sys.platform]}"


def wants_zig(settings: Settings) -> bool:
    return _TARGET in settings or not has_compiler()


def build_settings(config_settings: Settings | None) -> Settings:
    """Return the settings of a build: those given, and zig's where it is wanted."""
    settings = config_settings or {}
    if not wants_zig(settings):
        return settings
    import ziglang

    zig = Path(ziglang.__file__).with_name("zig.exe" if sys.platform == "win32" else "zig")
    return {
        _TARGET: own_target(),
        "cmake.define.CMAKE_TOOLCHAIN_FILE": str(Path(__file__).with_name("zig.cmake")),
        "cmake.define.HAVERSACK_ZIG": str(zig),
        "cmake.args": "-GNinja",
        **settings,
    }


def get_requires_for_build_wheel(config_settings: Settings | None = None) -> list[str]:
    settings = config_settings or {}
    if not wants_zig(settings):
        return build.get_requires_for_build_wheel(settings)
    return [*build.get_requires_for_build_wheel({**settings, "cmake.args": "-GNinja"}), ZIG]


get_requires_for_build_editable = get_requires_for_build_wheel


def build_wheel(
    wheel_directory: str,
    config_settings: Settings | None = None,
    metadata_directory: str | None = None,
) -> str:
    settings = build_settings(config_settings)
    return build.build_wheel(wheel_directory, settings, metadata_directory)


def build_editable(
    wheel_directory: str,
    config_settings: Settings | None = None,
    metadata_directory: str | None = None,
) -> str:
    settings = build_settings(config_settings)
    return build.build_editable(wheel_directory, settings, metadata_directory)
