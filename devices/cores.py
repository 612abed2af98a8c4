"""The number of cores that this process can compute on."""

import os
from dataclasses import dataclass
from pathlib import Path

import psutil

from haversack.devices.system import host
from haversack.devices.system.cgroup import cpu_quota


@dataclass(frozen=True)
class Cores:
    """The number of cores to compute on, and what decided it."""

    num_cores: int
    source: str


def usable_cores() -> int:
    """Return how many cores this process can keep busy, see `count_cores`."""
    return count_cores().num_cores


def count_cores(root: Path = Path("/")) -> Cores:
    """Return the least of three counts: the physical cores, the cores that this process may run
    on, and the CPU quota of its control groups; at least one.

    Two threads of one core do not compute faster, so physical cores are counted. A quota is rounded
    down, because threads beyond it use up the CPU time of a period early: then all threads stand
    still until the next period. `root` is where /proc and /sys are.
    """
    found = [Cores(psutil.cpu_count(logical=False) or os.cpu_count() or 1, "physical cores")]
    allowed_cores = host.allowed_cores()
    if allowed_cores is not None:
        found.append(Cores(allowed_cores, "cores this process may run on"))
    quota = cpu_quota(root)
    if quota is not None:
        source = f"a CPU quota of {quota.num_cores:.3g} cores, {quota.source}"
        found.append(Cores(int(quota.num_cores), source))
    least = min(found, key=lambda cores: cores.num_cores)
    return Cores(max(1, least.num_cores), least.source)
