"""Control groups: the CPU quota of our groups, and groups that we make with memory limits."""

import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from haversack.devices.system import cgroup
from haversack.devices.system.cgroup import CpuQuota, cpu_quota, limited_group, run_limited, why_not

MIB = 1024 * 1024
GREEDY = [sys.executable, "-c", "print(len(bytearray(200 * 1024 * 1024)))"]
V1_MOUNT = "32 31 0:29 {} /sys/fs/cgroup/cpu rw,relatime - cgroup cgroup rw,cpu,cpuacct\n"
V2_MOUNT = "30 23 0:26 {} /sys/fs/cgroup rw,relatime - cgroup2 cgroup2 rw,nsdelegate\n"


def quota_of(
    root: Path, group: str, mounts: str, files: Mapping[str, str | int]
) -> CpuQuota | None:
    """Return the quota found if the process is in `group` and the groups hold these files."""
    tree = {"proc/self/cgroup": group, "proc/self/mountinfo": mounts}
    tree |= {f"sys/fs/cgroup/{name}": f"{value}\n" for name, value in files.items()}
    for name, text in tree.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return cpu_quota(root)


# ----------------------------------------------------------------------- quota
def test_version_1_divides_the_quota_by_the_period(tmp_path: Path) -> None:
    files = {"cpu/box/cpu.cfs_quota_us": 150_000, "cpu/box/cpu.cfs_period_us": 100_000}
    quota = quota_of(tmp_path, "1:cpu,cpuacct:/box", V1_MOUNT.format("/"), files)
    assert quota is not None and quota.num_cores == 1.5
    assert quota.source.endswith("cpu/box/cpu.cfs_quota_us")


def test_version_2_has_both_in_one_file(tmp_path: Path) -> None:
    quota = quota_of(tmp_path, "0::/box", V2_MOUNT.format("/"), {"box/cpu.max": "50000 100000"})
    assert quota is not None and quota.num_cores == 0.5
    assert quota.source.endswith("box/cpu.max")


@pytest.mark.parametrize(
    "files",
    [
        {},
        {"cpu/cpu.cfs_quota_us": -1, "cpu/cpu.cfs_period_us": 100_000},
        {"cpu/cpu.cfs_quota_us": 50_000},
        {"cpu/cpu.cfs_quota_us": 50_000, "cpu/cpu.cfs_period_us": 0},
        {"cpu.max": "max 100000"},
        {"cpu.max": "50000"},
        {"cpu.max": "strange words"},
    ],
)
def test_what_is_no_quota(files: Mapping[str, str | int], tmp_path: Path) -> None:
    mounts = V1_MOUNT.format("/") + V2_MOUNT.format("/")
    assert quota_of(tmp_path, "1:cpu:/\n0::/", mounts, files) is None


def test_the_tightest_of_nested_groups_rules(tmp_path: Path) -> None:
    files = {
        "outer/cpu.max": "100000 100000",
        "outer/inner/cpu.max": "400000 100000",
        "outer/inner/leaf/cpu.max": "max 100000",
        "other/cpu.max": "1000 100000",
    }
    quota = quota_of(tmp_path, "0::/outer/inner/leaf", V2_MOUNT.format("/"), files)
    assert quota is not None and quota.num_cores == 1
    assert quota.source.endswith("outer/cpu.max")


@pytest.mark.parametrize("mount_root", ["/docker/4f1c", "/elsewhere", "/../.."])
def test_a_container_sees_its_own_quota_at_the_mount_point(tmp_path: Path, mount_root: str) -> None:
    files = {"cpu/cpu.cfs_quota_us": 20_000, "cpu/cpu.cfs_period_us": 100_000}
    quota = quota_of(tmp_path, "4:cpu:/docker/4f1c", V1_MOUNT.format(mount_root), files)
    assert quota is not None and quota.num_cores == 0.2


def test_a_system_without_proc_has_no_quota(tmp_path: Path) -> None:
    assert cpu_quota(tmp_path) is None


# ---------------------------------------------------------------------- limits
@pytest.mark.skipif(bool(why_not()), reason=why_not() or "groups can be made")
def test_a_process_that_takes_more_than_its_limit_is_killed() -> None:
    assert run_limited(GREEDY, 512 * MIB, timeout_s=300).stdout.strip() == str(200 * MIB)
    assert run_limited(GREEDY, 64 * MIB, timeout_s=300).returncode == -9


@pytest.mark.skipif(bool(why_not()), reason=why_not() or "groups can be made")
def test_this_machines_group_limits_swap_where_it_is_counted() -> None:
    with limited_group(64 * MIB) as group:
        sums, swaps = (
            group.folder / name for name in ("memory.memsw.limit_in_bytes", "memory.swap.max")
        )
        assert group.swap_limited == (sums.exists() or swaps.exists())
        if sums.exists():
            assert int(sums.read_text()) == 64 * MIB
        if swaps.exists():
            assert int(swaps.read_text()) == 0


@pytest.fixture(params=["version 1", "version 2", "no account of swap"])
def machine(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> tuple[Path, str]:
    """A machine whose new groups come with their control files, and its kind."""
    kind = request.param
    parent = tmp_path / "sys/fs/cgroup" / ("memory" if kind == "version 1" else "")
    parent.mkdir(parents=True)
    if kind == "version 1":
        (parent / "cgroup.procs").touch()
    names = {
        "version 1": ["memory.limit_in_bytes", "memory.memsw.limit_in_bytes"],
        "version 2": ["memory.max", "memory.swap.max"],
        "no account of swap": ["memory.max"],
    }
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/swaps").write_text("Filename Type Size\n/swap file 1024\n")
    make = Path.mkdir

    def make_group(path: Path) -> None:
        make(path)
        for name in names[kind]:
            (path / name).touch()

    monkeypatch.setattr(Path, "mkdir", make_group)
    monkeypatch.setattr(Path, "rmdir", lambda _: None)
    monkeypatch.setattr(cgroup, "_SYSTEM", tmp_path)
    return tmp_path, kind


def test_swap_is_limited_with_memory(machine: tuple[Path, str]) -> None:
    root, kind = machine
    with limited_group(7 * MIB, root) as group:
        written = {file.name: file.read_text() for file in group.folder.iterdir()}
        assert group.swap_limited == (kind != "no account of swap")
    limit = str(7 * MIB)
    assert (
        written
        == {
            "version 1": {"memory.limit_in_bytes": limit, "memory.memsw.limit_in_bytes": limit},
            "version 2": {"memory.max": limit, "memory.swap.max": "0"},
            "no account of swap": {"memory.max": limit},
        }[kind]
    )
