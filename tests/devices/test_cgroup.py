"""A control group's limit is hard: what a process does not get, it cannot take."""

import sys

import pytest

from haversack.devices.cgroup import run_limited, why_not

MIB = 1024 * 1024
GREEDY = [sys.executable, "-c", "print(len(bytearray(200 * 1024 * 1024)))"]


@pytest.mark.skipif(bool(why_not()), reason=why_not() or "groups can be made")
def test_a_process_that_takes_more_than_its_limit_is_killed() -> None:
    assert run_limited(GREEDY, 512 * MIB, timeout_s=30).stdout.strip() == str(200 * MIB)
    assert run_limited(GREEDY, 64 * MIB, timeout_s=30).returncode == -9
