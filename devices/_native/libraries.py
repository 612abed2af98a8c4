"""Opening shared libraries, and the prototypes of their functions."""

import ctypes as c
import os
import sys
from pathlib import Path
from typing import Any, NamedTuple


class Libraries(NamedTuple):
    """The libraries of llama.cpp: ggml's core, its CPU backend, its list of backends, and libllama.
    They may be one."""

    base: c.CDLL
    cpu: c.CDLL
    registry: c.CDLL
    llama: c.CDLL


def library_name(stem: str, version: str = "") -> str:
    """Return the file name of a library on this system; Windows' names have no version."""
    names = {"darwin": f"lib{stem}{version}.dylib", "win32": f"{stem}.dll"}
    return names.get(sys.platform, f"lib{stem}.so{version}")


def open_library(path: Path) -> c.CDLL:
    """Load a library whose functions other libraries of this process do not see. Raises OSError."""
    return c.CDLL(str(path), mode=c.RTLD_LOCAL)


def is_loaded(name: str) -> bool:
    """Return whether this process has loaded a library of that name, which another library that
    needs one of the name would get. False where the system cannot tell."""
    if not hasattr(os, "RTLD_NOLOAD"):
        return False
    try:
        c.CDLL(name, mode=os.RTLD_NOLOAD)
    except OSError:
        return False
    return True


def is_found_by_its_name(library: c.CDLL, name: str) -> bool:
    """Return whether other libraries get this one where they need one of that name. For Windows,
    which takes the first that was loaded."""
    return bool(c.CDLL(name, winmode=0)._handle == library._handle)


def prototype(library: c.CDLL, name: str, result: Any, *arguments: Any) -> Any:
    """Return the function `name` of a library, with these types."""
    function = getattr(library, name)
    function.restype, function.argtypes = result, arguments
    return function


def code_address(function: Any) -> int:
    """Return the address of a C function's code."""
    return int(c.cast(function, c.c_void_p).value or 0)


def int32_at(address: int) -> int:
    """Return the 32-bit integer at an address."""
    return int(c.c_int32.from_address(address).value)
