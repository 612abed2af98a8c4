"""Every system offers the same functions."""

import ast
import inspect
import sys
from pathlib import Path
from types import ModuleType

import pytest

import haversack.devices.system
from haversack.devices.system import host

if sys.platform == "win32":
    pytest.skip("compared on Linux and macOS", allow_module_level=True)
from haversack.devices.system import darwin, linux


def offered(module: ModuleType) -> dict[str, list[str]]:
    """The functions of a module with their arguments; some come from its neighbours."""
    return {
        name: list(inspect.signature(function).parameters)
        for name, function in inspect.getmembers(module, inspect.isfunction)
        if name[0] != "_" and name != "read_text" and "devices.system" in function.__module__
    }


def offered_by_windows() -> dict[str, list[str]]:
    """The same of the module that only Windows can import."""
    (folder,) = haversack.devices.system.__path__
    tree = ast.parse(Path(folder, "windows.py").read_text(encoding="utf-8"))
    functions = [node for node in tree.body if isinstance(node, ast.FunctionDef)]
    return {
        function.name: [argument.arg for argument in function.args.args]
        for function in functions
        if function.name[0] != "_"
    }


def test_all_systems_offer_the_same() -> None:
    assert host in (linux, darwin)
    assert offered(linux) == offered(darwin) == offered_by_windows()


def test_the_interface_is_described() -> None:
    description = sys.modules["haversack.devices.system"].__doc__ or ""
    assert all(f"    {name}(" in description for name in offered(linux))
