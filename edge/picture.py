"""Pictures of what was measured, as PNG files."""

import os
from pathlib import Path
from typing import Any

from haversack.devices.errors import HaversackError, PromptError, StorageError

_DOTS_PER_INCH = 150


def check_picture(path: Path) -> None:
    """Raise PromptError if no picture can be written to `path`. To be called before anything is
    measured, because that may take hours."""
    folder = path.parent
    if os.path.isdir(path):
        why = "that is a folder"
    elif not os.path.isdir(folder):
        why = f"there is no folder {folder}"
    elif not os.access(path if os.path.exists(path) else folder, os.W_OK):
        why = "that may not be written"
    else:
        return
    raise PromptError(f"--png is {path}, but {why}: give --png FILE in another folder")


def blank_figure(width_inches: float, height_inches: float) -> Any:
    """Return a figure of matplotlib to draw on. Raises HaversackError where it is missing."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise HaversackError(
            "no picture is drawn, because matplotlib is missing: pip install matplotlib"
        ) from None
    return Figure(figsize=(width_inches, height_inches), layout="constrained")


def write_picture(figure: Any, path: Path) -> None:
    """Write a figure as a PNG, whatever `path` ends with. Raises StorageError."""
    try:
        figure.savefig(path, format="png", dpi=_DOTS_PER_INCH)
    except OSError as error:
        raise StorageError(
            f"cannot write --png {path}: {error.strerror or error}; give another path"
        ) from error
