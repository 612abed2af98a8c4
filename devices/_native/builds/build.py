"""A build: a release of a package that brings llama.cpp's libraries; its structures are known."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from haversack.devices._native.libraries import Libraries

AVX2 = frozenset({"avx2", "bmi2", "f16c", "fma"})  # what a prebuilt one for x86-64 uses


@dataclass(frozen=True)
class Build:
    """What haversack knows of one release of one package.

    `api_version` is GGML_BACKEND_API_VERSION. `has_moe_cache_size`: whether llama_context_params
    has that field. `systems` are those it can be used on, by Python's names. `needs` are the
    instruction sets of x86-64 that its code uses, by Linux's names. `load` loads the libraries that
    lie in the package's folder, and raises OSError. `module_dir` is where in that folder modules
    lie, None for a build that takes none.
    """

    package: str
    version: str
    folder: str
    ggml: str
    api_version: int
    has_moe_cache_size: bool
    systems: tuple[str, ...]
    needs: frozenset[str]
    load: Callable[[Path], Libraries]
    module_dir: str | None

    @property
    def command(self) -> str:
        """The command that installs it."""
        return f"pip install {self.package}=={self.version}"
