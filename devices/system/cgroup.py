"""Control groups: those that limit this process, and groups of our own, which prove on Linux that a
model stays inside its budget."""

import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

_UNLIMITED_BYTES = 1 << 60  # version 1 writes "no limit" as 2**63 less one page
_LIMIT_FILES = (  # of control groups of version 2 and 1, each with the file of what is used
    ("memory.max", "memory.current"),
    ("memory.high", "memory.current"),
    ("memory.limit_in_bytes", "memory.usage_in_bytes"),
    ("memory.memsw.limit_in_bytes", "memory.memsw.usage_in_bytes"),
)
_V1_MEMORY = Path("sys/fs/cgroup/memory")
_V2_ROOT = Path("sys/fs/cgroup")
_SYSTEM = Path("/")


# --------------------------------------------------------------- groups we are in
@dataclass(frozen=True)
class MemoryLimit:
    """A group's limit, how much of it is left to its processes, and the file that sets it."""

    limit_bytes: int
    available_bytes: int
    source: str


@dataclass(frozen=True)
class CpuQuota:
    """CPU time that a control group grants: `num_cores` cores' worth of it, set in `source`."""

    num_cores: float
    source: str


def memory_limits(root: Path) -> list[MemoryLimit]:
    """Return the memory limits of our groups and those above them. Available is limit - usage +
    inactive file pages. `root` is where /proc and /sys are."""
    return [limit for folder in _folders(root, "memory") for limit in _limits_of(folder)]


def _limits_of(folder: Path) -> Iterator[MemoryLimit]:
    """Yield the limits of one control group; none if it sets none or has no memory files.

    Version 1 may limit memory and swap together ("memsw"), which counts what was swapped out too.
    """
    for limit, usage in _LIMIT_FILES:
        limit_bytes, used_bytes = _read_int(folder / limit), _read_int(folder / usage)
        if limit_bytes is None or limit_bytes >= _UNLIMITED_BYTES:
            continue
        if used_bytes is None:
            used_bytes = limit_bytes  # unknown use: nothing can be promised
        available_bytes = limit_bytes - used_bytes + _reclaimable_bytes(folder)
        available_bytes = min(max(available_bytes, 0), limit_bytes)
        yield MemoryLimit(limit_bytes, available_bytes, str(folder / limit))


def _reclaimable_bytes(folder: Path) -> int:
    """Return the file pages of the group and those below it that the kernel drops first."""
    lines = (line.split() for line in read_text(folder / "memory.stat").splitlines())
    stat = {words[0]: int(words[1]) for words in lines if len(words) == 2}
    # version 1 leaves the groups below out of "inactive_file"; usage and the total have them
    return stat.get("total_inactive_file", stat.get("inactive_file", 0))


def _read_int(file: Path) -> int | None:
    text = read_text(file).strip()
    return int(text) if text.isdigit() else None


def cpu_quota(root: Path = _SYSTEM) -> CpuQuota | None:
    """Return the tightest CPU quota of our groups and those above them; None if none is set."""
    quotas = [
        CpuQuota(num_cores, str(file))
        for folder in _folders(root, "cpu")
        for file, num_cores in (_quota_1(folder), _quota_2(folder))
        if num_cores is not None
    ]
    return min(quotas, key=lambda quota: quota.num_cores, default=None)


def _quota_1(folder: Path) -> tuple[Path, float | None]:
    """Read a quota of version 1: quota and period in two files; -1 is no quota."""
    file = folder / "cpu.cfs_quota_us"
    return file, _cores(read_text(file), read_text(folder / "cpu.cfs_period_us"))


def _quota_2(folder: Path) -> tuple[Path, float | None]:
    """Read a quota of version 2: "QUOTA PERIOD" in one file; "max" is no quota."""
    file = folder / "cpu.max"
    quota, _, period = read_text(file).partition(" ")
    return file, _cores(quota, period)


def _cores(quota_us: str, period_us: str) -> float | None:
    quota_us, period_us = quota_us.strip(), period_us.strip()
    if not (quota_us.isdigit() and period_us.isdigit() and int(quota_us) and int(period_us)):
        return None
    return int(quota_us) / int(period_us)


def _folders(root: Path, controller: str) -> list[Path]:
    """Return the folders of our control groups that `controller` ("memory", "cpu") may limit, of
    both versions, each from our own group up to the mount point. `root` is where /proc and /sys
    are."""
    folders: list[Path] = []
    for line in read_text(root / "proc/self/cgroup").splitlines():
        hierarchy, controllers, group = line.split(":", 2)
        if hierarchy != "0" and controller not in controllers.split(","):
            continue
        kind = "cgroup2" if hierarchy == "0" else "cgroup"
        for mount_root, mount_point in _group_mounts(root, kind, controller):
            folders += _folders_up(group, mount_root, root / mount_point.lstrip("/"))
    return folders


def _group_mounts(root: Path, kind: str, controller: str) -> list[tuple[str, str]]:
    """Return (group shown there, mount point) of each hierarchy that may have the controller."""
    mounts: list[tuple[str, str]] = []
    for line in read_text(root / "proc/self/mountinfo").splitlines():
        place, _, source = line.partition(" - ")
        file_system, *_, options = source.split()
        if file_system == kind and (kind == "cgroup2" or controller in options.split(",")):
            mount_root, mount_point = place.split()[3:5]
            mounts.append((mount_root, mount_point))
    return mounts


def _folders_up(group: str, mount_root: str, mount_point: Path) -> list[Path]:
    """Return the group's folder and its parents, the mount point last.

    A container may see its own group at the mount point while `group` names it from outside: a
    group that does not lie below `mount_root` is then the mount point itself.
    """
    try:
        inside = PurePosixPath(group).relative_to(mount_root)
    except ValueError:
        return [mount_point]
    if ".." in inside.parts:
        return [mount_point]
    return [mount_point / part for part in (inside, *inside.parents)]


def read_text(file: Path) -> str:
    """Return the file's text, empty if it is missing or may not be read."""
    try:
        return file.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


# ---------------------------------------------------------------- groups we make
@dataclass(frozen=True)
class LimitedGroup:
    """A group of our own. `swap_limited` says whether its limit counts swap too; where the kernel
    keeps no account of swap (`swapaccount=0`), processes may hold more than the limit by it."""

    folder: Path
    swap_limited: bool


def why_not() -> str:
    """Return why no group that proves a budget can be made here, or '' if one can."""
    if sys.platform != "linux":
        return "memory control groups are Linux's"
    try:
        with limited_group(1 << 30) as group:
            if group.swap_limited or not _has_swap(_SYSTEM):
                return ""
    except OSError as error:
        return f"memory control groups cannot be made here ({error}): run as root on Linux"
    return (
        "this kernel keeps no account of swap, so a group's limit does not bound it: boot with"
        " swapaccount=1, or run swapoff -a"
    )


@contextmanager
def limited_group(limit_bytes: int, root: Path = _SYSTEM) -> Iterator[LimitedGroup]:
    """Make a group whose processes together get at most `limit_bytes`, swap included if the kernel
    counts it.

    A process joins by writing its id into the folder's `cgroup.procs`. `root` is where /sys is.
    Raises OSError where groups cannot be made.
    """
    first = (root / _V1_MEMORY / "cgroup.procs").exists()
    folder = root / (_V1_MEMORY if first else _V2_ROOT) / f"haversack-{os.getpid()}"
    folder.mkdir()
    try:
        limit, swap_limit = (
            ("memory.limit_in_bytes", "memory.memsw.limit_in_bytes")
            if first
            else ("memory.max", "memory.swap.max")
        )
        (folder / limit).write_text(str(limit_bytes))
        # Version 1 limits the sum of memory and swap, version 2 swap alone.
        swap_limited = _write_present(folder / swap_limit, str(limit_bytes) if first else "0")
        yield LimitedGroup(folder, swap_limited)
    finally:
        folder.rmdir()


def run_limited(
    command: Sequence[str], limit_bytes: int, timeout_s: float
) -> subprocess.CompletedProcess[str]:
    """Run `command` in a group of its own and return what it printed; a process that needs more
    than `limit_bytes` is killed (returncode -9)."""
    with limited_group(limit_bytes) as group:
        joined = ["sh", "-c", f'echo $$ > {group.folder}/cgroup.procs && exec "$@"', "sh", *command]
        return subprocess.run(joined, capture_output=True, text=True, timeout=timeout_s)


def _write_present(file: Path, text: str) -> bool:
    """Write into a control file; False where the kernel has no such file."""
    try:
        with file.open("r+") as control:
            control.write(text)
    except FileNotFoundError:
        return False
    return True


def _has_swap(root: Path) -> bool:
    """Return whether the machine has swap; /proc/swaps has a heading and a line for each."""
    return len(read_text(root / "proc/swaps").splitlines()) > 1
