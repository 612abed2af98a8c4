"""The number of cores that this process may use."""

import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from haversack.devices.cores import count_cores, usable_cores

AFFINITY = hasattr(os, "sched_getaffinity")


def with_quota(root: Path, quota: str) -> tuple[int, str]:
    """(cores, their source) where the group's quota is so; all cores of this machine are free."""
    files = {
        "proc/self/cgroup": "0::/\n",
        "proc/self/mountinfo": "30 23 0:26 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n",
        "sys/fs/cgroup/cpu.max": quota,
    }
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    cores = count_cores(root)
    return cores.num_cores, cores.source


@pytest.fixture
def eight_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    def physical(logical: bool = True) -> int:
        return 16 if logical else 8

    monkeypatch.setattr(psutil, "cpu_count", physical)
    if AFFINITY:
        monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(16)))


def test_there_is_at_least_one() -> None:
    assert 1 <= usable_cores() <= (os.cpu_count() or 1)


@pytest.mark.usefixtures("eight_cores")
@pytest.mark.parametrize(
    ("quota", "num_cores"),
    [
        *[("5000 100000", 1), ("50000 100000", 1), ("150000 100000", 1), ("200000 100000", 2)],
        *[("790000 100000", 7), ("1600000 100000", 8), ("max 100000", 8), ("100000 25000", 4)],
    ],
)
def test_a_quota_is_rounded_down_to_cores(quota: str, num_cores: int, tmp_path: Path) -> None:
    assert with_quota(tmp_path, quota)[0] == num_cores


@pytest.mark.usefixtures("eight_cores")
def test_what_decided_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    number, source = with_quota(tmp_path, "250000 100000")
    assert number == 2
    assert source.startswith("a CPU quota of 2.5 cores, ") and source.endswith("cpu.max")
    assert with_quota(tmp_path, "max 100000") == (8, "physical cores")
    if AFFINITY:
        monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 3, 5})
        assert with_quota(tmp_path, "max 100000") == (3, "cores this process may run on")


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="cores cannot be assigned here")
def test_a_process_confined_to_one_core_uses_one() -> None:
    code = (
        "import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))});"
        "from haversack.devices.cores import usable_cores; print(usable_cores())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "1"
