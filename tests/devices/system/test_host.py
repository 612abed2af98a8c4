"""Every system offers the same functions, and says what it does not know."""

import inspect
import sys
from pathlib import Path
from types import ModuleType

import pytest

from haversack.devices.errors import HaversackError
from haversack.devices.system import default, host, linux

MODULES: list[ModuleType] = [default, linux]
if sys.platform != "win32":
    from haversack.devices.system import darwin

    MODULES.append(darwin)


def offered(module: ModuleType) -> dict[str, str]:
    """The signatures of a module's functions, of which some come from its neighbours."""
    return {
        name: str(inspect.signature(function))
        for name, function in inspect.getmembers(module, inspect.isfunction)
        if name[0] != "_" and "cgroup" not in function.__module__
    }


def test_all_systems_offer_the_same() -> None:
    assert host in MODULES
    for module in MODULES:
        assert offered(module) == offered(default), module.__name__


def test_the_interface_is_described() -> None:
    description = sys.modules["haversack.devices.system"].__doc__ or ""
    assert all(f"    {name}(" in description for name in offered(default))


def test_what_is_not_known_is_told(tmp_path: Path) -> None:
    assert default.memory_status() is default.ram(tmp_path) is default.allowed_cores() is None
    assert not default.keep_freed_memory()
    with pytest.raises(HaversackError, match="run on Linux or macOS"):
        default.reserve(1)
    file, reason = default.open_direct(tmp_path)
    assert file is None and "direct" in reason
