"""Where haversack keeps what it makes of models, and what it learns of the computer."""

from pathlib import Path

import platformdirs


def default_cache_dir() -> Path:
    """Return the folder where trunk files lie by default."""
    return Path(platformdirs.user_cache_dir("haversack")) / "trunks"


def kv_folder(cache_dir: str | Path | None) -> Path:
    """Return the folder where texts wait for `LoadOptions.kv_disk`."""
    return Path(cache_dir or default_cache_dir()) / "kv"


def modules_folder(cache_dir: str | Path | None) -> Path:
    """Return the folder of the backends that `haversack backend build` makes."""
    return Path(cache_dir or default_cache_dir()) / "backends"
