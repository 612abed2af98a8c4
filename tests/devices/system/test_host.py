"""Every system offers the same functions, and says what it does not know."""

import inspect
import sys
from pathlib import Path
from types import ModuleType

import pytest

from haversack.devices.errors import HaversackError
from haversack.devices.system import host, linux, unknown, windows

MODULES: list[ModuleType] = [linux, windows]
if sys.platform != "win32":
    from haversack.devices.system import darwin

    MODULES.append(darwin)


def offered(module: ModuleType) -> dict[str, str]:
    """The signatures of a module's functions: those of other modules if they are passed on."""
    functions = inspect.getmembers(module, inspect.isfunction)
    passed_on = [*getattr(module, "__all__", ())]
    return {
        name: str(inspect.signature(function))
        for name, function in functions
        if not name.startswith("_")
        and (function.__module__ == module.__name__ or name in passed_on)
    }


def test_all_systems_offer_the_same() -> None:
    assert host in MODULES
    for module in MODULES:
        assert offered(module) == offered(linux), module.__name__


def test_the_interface_is_described() -> None:
    description = sys.modules["haversack.devices.system"].__doc__ or ""
    assert all(f"    {name}(" in description for name in offered(linux))


def test_what_is_not_known_is_told(tmp_path: Path) -> None:
    assert unknown.memory_status() is unknown.ram(tmp_path) is unknown.allowed_cores() is None
    assert not unknown.keep_freed_memory()
    with pytest.raises(HaversackError, match="Windows"):
        windows.reserve(1)
    file, reason = windows.open_direct(tmp_path)
    assert file is None and "direct" in reason
