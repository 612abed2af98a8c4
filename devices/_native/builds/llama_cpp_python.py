"""llama-cpp-python: llama.cpp compiled on this computer, for its processor."""

from pathlib import Path

from haversack.devices._native.builds.build import Build
from haversack.devices._native.libraries import Libraries, library_name, open_library


def _load(folder: Path) -> Libraries:
    """Each by the name under which libllama loads it. Another name would load a second copy, which
    the log callback, for one, does not reach."""
    llama = open_library(folder / "lib" / library_name("llama"))
    return Libraries(
        base=open_library(folder / "lib" / library_name("ggml-base", ".0")),
        cpu=open_library(folder / "lib" / library_name("ggml-cpu", ".0")),
        registry=open_library(folder / "lib" / library_name("ggml", ".0")),
        llama=llama,
    )


BUILD = Build(
    package="llama-cpp-python",
    version="0.3.36",
    folder="llama_cpp",
    ggml="0.25.3",
    api_version=2,
    has_moe_cache_size=False,
    systems=("linux", "darwin", "win32"),
    needs=frozenset(),  # whatever this processor has
    load=_load,
    module_dir="lib",
)
