"""Memory control groups of one's own: how "inside a budget" is proven on Linux."""

import os
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

_V1_ROOT = Path("/sys/fs/cgroup/memory")
_V2_ROOT = Path("/sys/fs/cgroup")


def why_not() -> str:
    """Why no group can be made here, or '' if one can."""
    try:
        with limited_group(1 << 30):
            return ""
    except OSError as error:
        return f"memory control groups cannot be made here ({error}): run as root on Linux"


@contextmanager
def limited_group(limit_bytes: int) -> Iterator[Path]:
    """A new group whose processes together get at most `limit_bytes`, swap included.

    Gives its folder: a process joins by writing its id into `cgroup.procs`. Raises OSError where
    groups cannot be made.
    """
    first = (_V1_ROOT / "cgroup.procs").exists()
    folder = (_V1_ROOT if first else _V2_ROOT) / f"haversack-{os.getpid()}"
    folder.mkdir()
    try:
        if first:
            (folder / "memory.limit_in_bytes").write_text(str(limit_bytes))
        else:
            (folder / "memory.max").write_text(str(limit_bytes))
        yield folder
    finally:
        folder.rmdir()


def run_limited(
    command: Sequence[str], limit_bytes: int, timeout_s: float
) -> subprocess.CompletedProcess[str]:
    """Run `command` in a group of its own and return what it printed; a process that needs more
    than `limit_bytes` is killed (returncode -9)."""
    with limited_group(limit_bytes) as folder:
        joined = ["sh", "-c", f'echo $$ > {folder}/cgroup.procs && exec "$@"', "sh", *command]
        return subprocess.run(joined, capture_output=True, text=True, timeout=timeout_s)
