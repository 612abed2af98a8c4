"""What is known, and done, on every system but Linux: see `devices.system`."""

import io
from pathlib import Path


def memory_status() -> tuple[int, int, int] | None:
    return None


def forget_peak() -> None:
    pass


def ram(root: Path) -> tuple[int, int, str] | None:
    return None


def allowed_cores() -> int | None:
    return None


def give_back_freed_memory() -> None:
    pass


def keep_freed_memory() -> bool:
    return False


def open_plain(path: Path) -> io.FileIO:
    return io.FileIO(path)
