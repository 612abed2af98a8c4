import gc
import mmap
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from unittest.mock import patch

import numpy as np
import psutil
import pytest

from haversack.devices import memory
from haversack.devices.errors import BudgetError, ClosedError, HaversackError
from haversack.devices.memory import (
    HUGE_PAGE_BYTES,
    PAGE_BYTES,
    PeakMeter,
    RamProbe,
    SlotMemory,
    anonymous_bytes,
    probe_ram,
    slots_resident_bytes,
)
from haversack.devices.system import host
from haversack.devices.system.cgroup import run_limited, why_not

MIB = 2**20
GIB = 2**30
MEMINFO = f"MemTotal: {16 * MIB} kB\nMemFree: 1 kB\nMemAvailable: {12 * MIB} kB\n"  # 16 and 12 GiB
V2_MOUNT = "30 23 0:26 / /sys/fs/cgroup rw,relatime - cgroup2 cgroup2 rw,nsdelegate\n"
V1_MOUNT = "35 31 0:32 {} /sys/fs/cgroup/memory rw,relatime shared:9 - cgroup cgroup rw,memory\n"
V1_UNLIMITED = 2**63 - 4096

linux = pytest.mark.skipif(sys.platform != "linux", reason="a property of Linux")


def machine(root: Path, group: str, mounts: str, files: Mapping[str, str | int]) -> RamProbe:
    """Return the RAM found on a machine of 16 GiB with this group, these mounts and group files."""
    if sys.platform != "linux":
        pytest.skip("control groups are Linux's")
    tree = {"proc/meminfo": MEMINFO, "proc/self/cgroup": group, "proc/self/mountinfo": mounts}
    for name, value in files.items():
        tree[f"sys/fs/cgroup/{name}"] = f"{value}\n"
    for name, text in tree.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return probe_ram(root)


def test_without_control_groups_the_system_rules(tmp_path: Path) -> None:
    assert machine(tmp_path, "", "", {}) == RamProbe(
        total_bytes=16 * GIB,
        available_bytes=12 * GIB,
        limit_bytes=None,
        source="MemAvailable of /proc/meminfo",
    )


def test_version_2_counts_what_the_kernel_would_drop(tmp_path: Path) -> None:
    files = {
        "box/memory.max": 4 * GIB,
        "box/memory.high": "max",
        "box/memory.current": 3 * GIB,
        "box/memory.stat": f"anon 7\ninactive_file {GIB}\nactive_file 5\n",
    }
    probe = machine(tmp_path, "0::/box", V2_MOUNT, files)
    assert (probe.available_bytes, probe.limit_bytes) == (2 * GIB, 4 * GIB)
    assert probe.source.endswith("box/memory.max")


def test_version_2_takes_the_tightest_on_the_way_up(tmp_path: Path) -> None:
    files = {
        "outer/memory.max": 3 * GIB,
        "outer/memory.current": GIB,
        "outer/inner/memory.max": 8 * GIB,
        "outer/inner/memory.current": 0,
        "outer/inner/leaf/memory.max": "max",
        "other/memory.max": 1,
    }
    probe = machine(tmp_path, "0::/outer/inner/leaf", V2_MOUNT, files)
    assert (probe.available_bytes, probe.limit_bytes) == (2 * GIB, 3 * GIB)
    assert probe.source.endswith("outer/memory.max")


def test_a_throttling_limit_is_a_limit(tmp_path: Path) -> None:
    files = {"memory.max": 4 * GIB, "memory.high": GIB, "memory.current": 0}
    probe = machine(tmp_path, "0::/", V2_MOUNT, files)
    assert (probe.available_bytes, probe.limit_bytes) == (GIB, GIB)
    assert probe.source.endswith("memory.high")


def test_a_wide_limit_is_told_and_does_not_rule(tmp_path: Path) -> None:
    files = {"memory.max": 15 * GIB, "memory.current": 0}
    probe = machine(tmp_path, "0::/", V2_MOUNT, files)
    assert (probe.available_bytes, probe.limit_bytes) == (12 * GIB, 15 * GIB)
    assert probe.source == "MemAvailable of /proc/meminfo"


def test_a_group_over_its_limit_leaves_nothing(tmp_path: Path) -> None:
    files = {"memory.max": GIB, "memory.current": 2 * GIB}
    assert machine(tmp_path, "0::/", V2_MOUNT, files).available_bytes == 0


def test_unknown_use_promises_nothing(tmp_path: Path) -> None:
    assert machine(tmp_path, "0::/", V2_MOUNT, {"memory.max": GIB}).available_bytes == 0


def test_version_1_says_unlimited_with_a_huge_number(tmp_path: Path) -> None:
    files = {"memory/memory.limit_in_bytes": V1_UNLIMITED, "memory/memory.usage_in_bytes": GIB}
    probe = machine(tmp_path, "4:memory:/", V1_MOUNT.format("/"), files)
    assert (probe.available_bytes, probe.limit_bytes) == (12 * GIB, None)


def test_version_1_beside_a_version_2_without_memory(tmp_path: Path) -> None:
    mounts = V1_MOUNT.format("/") + V2_MOUNT.replace("/cgroup rw", "/cgroup/unified rw")
    files = {
        "memory/memory.limit_in_bytes": V1_UNLIMITED,
        "memory/box/memory.limit_in_bytes": 2 * GIB,
        "memory/box/memory.usage_in_bytes": 2 * GIB,
        "memory/box/memory.stat": f"inactive_file 0\ntotal_inactive_file {GIB}\n",
        "unified/box/cgroup.procs": 1,
    }
    probe = machine(tmp_path, "9:name=systemd:/\n4:memory,cpu:/box\n0::/box", mounts, files)
    assert (probe.available_bytes, probe.limit_bytes) == (GIB, 2 * GIB)
    assert probe.source.endswith("memory/box/memory.limit_in_bytes")


def test_version_1_may_limit_memory_and_swap_together(tmp_path: Path) -> None:
    files = {
        "memory/memory.limit_in_bytes": 3 * GIB,
        "memory/memory.usage_in_bytes": GIB,
        "memory/memory.memsw.limit_in_bytes": 3 * GIB,
        "memory/memory.memsw.usage_in_bytes": 2 * GIB,  # half of it lies in swap
    }
    probe = machine(tmp_path, "4:memory:/", V1_MOUNT.format("/"), files)
    assert (probe.available_bytes, probe.limit_bytes) == (GIB, 3 * GIB)
    assert probe.source.endswith("memory.memsw.limit_in_bytes")


@pytest.mark.parametrize("mount_root", ["/docker/4f1c", "/elsewhere", "/../.."])
def test_a_container_sees_its_own_group_at_the_mount_point(tmp_path: Path, mount_root: str) -> None:
    files = {"memory/memory.limit_in_bytes": GIB, "memory/memory.usage_in_bytes": 0}
    probe = machine(tmp_path, "4:memory:/docker/4f1c", V1_MOUNT.format(mount_root), files)
    assert probe.available_bytes == GIB


def test_a_group_outside_the_namespace_is_not_looked_for(tmp_path: Path) -> None:
    files = {"memory.max": GIB, "memory.current": 0, "../sibling/memory.max": 1}
    assert machine(tmp_path, "0::/../sibling", V2_MOUNT, files).available_bytes == GIB


def test_this_machine(tmp_path: Path) -> None:
    probe = probe_ram()
    assert probe.total_bytes == psutil.virtual_memory().total
    assert 0 < probe.available_bytes < probe.total_bytes
    assert probe.source
    elsewhere = probe_ram(tmp_path)  # a system without /proc
    assert elsewhere.total_bytes == probe.total_bytes
    assert elsewhere.limit_bytes is None


def test_an_arena_counts_once_touched_and_goes_when_closed() -> None:
    before = anonymous_bytes()
    with SlotMemory(32 * MIB) as arena:
        assert anonymous_bytes() - before < MIB
        arena.bytes[:] = 7
        assert abs(anonymous_bytes() - before - 32 * MIB) < MIB
    assert anonymous_bytes() - before < MIB


@pytest.mark.parametrize("num_bytes", [1, 4096, 3 * MIB, 4 * MIB + 12345])
def test_an_arena_is_aligned_and_writable_to_its_last_byte(num_bytes: int) -> None:
    with SlotMemory(num_bytes) as arena:
        assert arena.address % HUGE_PAGE_BYTES == 0
        assert arena.address == arena.bytes.__array_interface__["data"][0]
        assert arena.bytes.shape == (num_bytes,) == (arena.num_bytes,)
        assert not arena.bytes.any()
        arena.bytes[:] = 255
        assert int(arena.bytes.sum(dtype=np.int64)) == 255 * num_bytes


def test_an_arena_takes_no_whole_huge_page_for_its_last_bytes() -> None:
    before = anonymous_bytes()
    with SlotMemory(2 * MIB + 4096) as arena:
        arena.bytes[:] = 1
        assert anonymous_bytes() - before < 3 * MIB


def test_arrays_of_the_caller_outlive_the_arena() -> None:
    before = anonymous_bytes()
    arena = SlotMemory(8 * MIB)
    arena.bytes[:] = 3
    view = arena.bytes[MIB : 2 * MIB]
    arena.close()
    arena.close()
    with pytest.raises(ClosedError, match="closed"):
        _ = arena.bytes
    assert view.min() == view.max() == 3
    del view
    gc.collect()
    assert anonymous_bytes() - before < MIB


@linux
def test_an_arena_tells_what_of_it_is_in_memory() -> None:
    before = slots_resident_bytes()
    with SlotMemory(16 * MIB + 5) as arena:
        assert arena.resident_bytes == 0
        arena.bytes[: 6 * MIB] = 1
        assert 6 * MIB <= arena.resident_bytes <= 8 * MIB
        arena.bytes[:] = 1
        assert arena.resident_bytes == 16 * MIB + PAGE_BYTES
        assert slots_resident_bytes() - before == arena.resident_bytes
    assert arena.resident_bytes == 0
    assert slots_resident_bytes() == before


# ------------------------------------------------------------ growing and shrinking
@linux
def test_slot_memory_grows_and_shrinks_in_its_place() -> None:
    before = anonymous_bytes()
    with SlotMemory(1024 * GIB, 8 * MIB) as memory:
        address = memory.address
        memory.bytes[:] = 5
        memory.resize(24 * MIB)
        assert (memory.address, memory.num_bytes) == (address, 24 * MIB)
        assert memory.bytes[: 8 * MIB].min() == 5
        assert not memory.bytes[8 * MIB :].any()
        memory.bytes[:] = 6
        assert memory.resident_bytes == 24 * MIB
        memory.resize(4 * MIB + 100)
        assert memory.resident_bytes == 4 * MIB + PAGE_BYTES
        assert anonymous_bytes() - before < 6 * MIB
        assert memory.bytes.shape == (4 * MIB + 100,) and memory.bytes.min() == 6
        memory.resize(16 * MIB)
        assert memory.address == address
        assert not memory.bytes[4 * MIB + PAGE_BYTES :].any()  # what was given back is gone
        memory.resize(0)
        assert memory.resident_bytes == 0 == len(memory.bytes)
    with pytest.raises(ClosedError):
        memory.resize(MIB)
    assert anonymous_bytes() - before < MIB


@pytest.mark.parametrize("num_bytes", [-1, 2 * MIB + 1])
def test_slot_memory_stays_within_its_addresses(num_bytes: int) -> None:
    with SlotMemory(2 * MIB, 0) as memory, pytest.raises(ValueError, match=str(num_bytes)):
        memory.resize(num_bytes)


TOUCHED_BEYOND = """
import signal
import subprocess
import sys
from haversack.devices._native import array_at
from haversack.devices.memory import SlotMemory

memory = SlotMemory(64 * 2**20, 16 * 2**20)
memory.bytes[:] = 1
if sys.argv[1] == "shrunk":
    memory.resize(8 * 2**20)
print("about to", flush=True)
array_at(memory.address + memory.num_bytes, (1,), "uint8")[0] = 1
print("written")
"""


@linux
@pytest.mark.parametrize("case", ["never grown", "shrunk"])
def test_memory_that_was_not_committed_cannot_be_touched(case: str) -> None:
    command = [sys.executable, "-c", TOUCHED_BEYOND, case]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (-signal.SIGSEGV, "about to\n")


REFUSED = """
import resource
from haversack.devices.errors import BudgetError
from haversack.devices.memory import SlotMemory

memory = SlotMemory(2**40, 2**20)
memory.bytes[:] = 3
resource.setrlimit(resource.RLIMIT_DATA, (2**30, 2**30))
try:
    memory.resize(2**39)
except BudgetError as error:
    print(error)
memory.resize(4 * 2**20)
print(memory.bytes[: 2**20].min(), memory.num_bytes // 2**20)
"""


@linux
def test_growth_that_the_system_refuses_changes_nothing() -> None:
    done = subprocess.run([sys.executable, "-c", REFUSED], capture_output=True, text=True)
    told, rest = done.stdout.splitlines()
    assert "refuses 512.0 GiB of memory for slots" in told and "lower --ram" in told
    assert rest == "3 4"


# Two memories take turns: together they would not fit into the group's limit.
TURNS = """
from haversack.devices.memory import SlotMemory

memories = [SlotMemory(2**30, 0) for _ in range(2)]
for turn in range(6):
    one, other = memories[turn % 2], memories[1 - turn % 2]
    other.resize(2**20)
    one.resize(160 * 2**20)
    one.bytes[:] = turn
print([memory.resident_bytes // 2**20 for memory in memories])
"""


@pytest.mark.skipif(bool(why_not()), reason=f"{why_not()}")
def test_what_one_memory_gives_back_another_may_take_inside_a_hard_limit() -> None:
    done = run_limited([sys.executable, "-c", TURNS], 256 * MIB, timeout_s=300)
    assert (done.returncode, done.stdout) == (0, "[1, 160]\n"), done.stderr


# ------------------------------------------------------------------------- peak
SLIGHT_BYTES = 3 * MIB  # the kernel counts pages for each processor, and adds up now and then


def take_and_free(num_bytes: int) -> None:
    """Use anonymous memory that is freed when the call returns."""
    with SlotMemory(num_bytes) as arena:
        arena.bytes[:] = 1


@linux
def test_a_peak_between_two_looks_is_seen() -> None:
    take_and_free(300 * MIB)  # before the meter: not its peak
    meter = PeakMeter()
    start = meter.look()
    assert abs(start - anonymous_bytes()) < MIB
    take_and_free(100 * MIB)
    assert meter.look() - start == pytest.approx(100 * MIB, abs=SLIGHT_BYTES)
    take_and_free(50 * MIB)
    assert meter.look() - start == pytest.approx(100 * MIB, abs=SLIGHT_BYTES)
    take_and_free(150 * MIB)
    assert meter.look() - start == pytest.approx(150 * MIB, abs=SLIGHT_BYTES)


@linux
def test_meters_do_not_disturb_each_other() -> None:
    first = PeakMeter()
    start = first.look()
    take_and_free(200 * MIB)
    second = PeakMeter()  # before the first one looks again
    take_and_free(80 * MIB)
    assert second.look() - start == pytest.approx(80 * MIB, abs=SLIGHT_BYTES)
    assert first.look() - start == pytest.approx(200 * MIB, abs=SLIGHT_BYTES)
    take_and_free(250 * MIB)
    assert second.look() == pytest.approx(first.look(), abs=4 * MIB)
    assert first.look() - start == pytest.approx(250 * MIB, abs=SLIGHT_BYTES)


@linux
def test_file_pages_are_not_in_the_peak(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"x" * (64 * MIB))
    with file.open("rb") as opened, mmap.mmap(opened.fileno(), 0, prot=mmap.PROT_READ) as mapped:
        sum(mapped[::PAGE_BYTES])
        meter = PeakMeter()
        start = meter.look()
        take_and_free(100 * MIB)
        assert meter.look() - start == pytest.approx(100 * MIB, abs=SLIGHT_BYTES)


@linux
def test_a_mark_that_cannot_be_lowered_hides_no_lasting_peak(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    take_and_free(300 * MIB)
    monkeypatch.setattr(host, "forget_peak", lambda: None)
    meter = PeakMeter()
    start = meter.look()
    with SlotMemory(100 * MIB) as arena:
        arena.bytes[:] = 1
        assert meter.look() - start == pytest.approx(100 * MIB, abs=SLIGHT_BYTES)
    assert meter.look() - start == pytest.approx(100 * MIB, abs=SLIGHT_BYTES)


def test_without_proc_the_highest_look_is_the_peak(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host, "memory_status", lambda: None)
    looks = iter([5, 5, 9, 7])
    monkeypatch.setattr(memory, "_unshared_bytes", lambda: next(looks))
    monkeypatch.setattr(memory, "_meters", set())
    monkeypatch.setattr(memory, "_lower_the_mark", lambda: None)
    meter = PeakMeter()
    assert [meter.look() for _ in range(3)] == [5, 9, 9]


@linux
def test_huge_pages_are_not_claimed_where_they_are_switched_off(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mode = tmp_path / "enabled"
    mode.write_text("always madvise [never]\n")
    monkeypatch.setattr(host, "_HUGE_PAGE_MODE", mode)
    with SlotMemory(MIB) as arena:
        assert not arena.huge_pages


def test_an_impossible_arena_is_a_budget_error() -> None:
    with pytest.raises(BudgetError, match=r"--ram") as caught:
        SlotMemory(2**60)
    assert caught.value.need_bytes == 2**60 > caught.value.have_bytes > 0
    with pytest.raises(ValueError, match="at least one byte"):
        SlotMemory(0)


@linux
def test_reserved_addresses_cost_no_memory() -> None:
    before = anonymous_bytes()
    with SlotMemory(1024 * GIB, 0) as space:
        assert space.most_bytes == 1024 * GIB
        assert anonymous_bytes() - before < MIB
        line = next(line for line in maps() if covers(line, space.address))
        assert " ---p " in line
    space.close()
    assert not any(covers(line, space.address) for line in maps())


@linux
def test_addresses_the_system_does_not_have() -> None:
    with pytest.raises(HaversackError, match="ulimit -v"):
        SlotMemory(2**62)


@linux
def test_anonymous_bytes_reads_one_small_file_because_every_token_asks() -> None:
    with patch("builtins.open", wraps=open) as opened:
        anonymous_bytes()
    assert [call.args[0] for call in opened.call_args_list] == ["/proc/self/status"]


def test_where_the_system_does_not_tell_the_nearest_figure_is_told(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    anonymous, resident = anonymous_bytes(), psutil.Process().memory_info().rss
    monkeypatch.setattr(host, "memory_status", lambda: None)
    assert anonymous * 0.9 < anonymous_bytes() < resident * 1.1


def maps() -> list[str]:
    return Path("/proc/self/maps").read_text().splitlines()


def covers(line: str, address: int) -> bool:
    start, end = line.split()[0].split("-")
    return int(start, 16) <= address < int(end, 16)
