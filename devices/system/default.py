"""The functions of a system that is not supported, such as Windows; see `devices.system`."""

import io
import mmap
from pathlib import Path
from typing import NoReturn

from haversack.devices.errors import HaversackError


def _not_yet() -> NoReturn:
    raise HaversackError("experts cannot be read on this system yet: run on Linux or macOS")


def memory_status() -> tuple[int, int, int] | None:
    return None


def forget_peak() -> None:
    pass


def ram(root: Path) -> tuple[int, int, str] | None:
    return None


def allowed_cores() -> int | None:
    return None


def reserve(num_bytes: int) -> mmap.mmap:
    _not_yet()


def commit(address: int, num_bytes: int) -> bool:
    _not_yet()


def decommit(address: int, num_bytes: int) -> None:
    _not_yet()


def resident_bytes(address: int, num_bytes: int) -> int:
    return 0


def give_back_freed_memory() -> None:
    pass


def keep_freed_memory() -> bool:
    return False


def open_direct(path: Path) -> tuple[io.FileIO | None, str]:
    return None, "this system has no direct reads"


def open_plain(path: Path) -> io.FileIO:
    return io.FileIO(path)


def read_at(file: io.FileIO, view: memoryview, offset: int) -> int:
    _not_yet()
