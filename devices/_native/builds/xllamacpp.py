"""xllamacpp: all of llama.cpp in one prebuilt library, an extension module of Python.

It is loaded as a library and never imported. Its Windows wheel exports no functions.
"""

from pathlib import Path

from haversack.devices._native.builds.build import AVX2, Build
from haversack.devices._native.libraries import Libraries, open_library


def _load(folder: Path) -> Libraries:
    library = open_library(folder / "xllamacpp.abi3.so")
    return Libraries(base=library, cpu=library, registry=library, llama=library)


BUILD = Build(
    package="xllamacpp",
    version="2026.10.11549",
    folder="xllamacpp",
    ggml="0.26.0",
    api_version=3,
    has_moe_cache_size=True,
    systems=("linux", "darwin"),
    needs=AVX2,
    load=_load,
    module_dir=None,  # they need libraries that it has inside
)
