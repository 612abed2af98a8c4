"""The heap keeps what was freed. A process of its own shows it, because the setting stays."""

import subprocess
import sys

import pytest

FAULTS = """
import resource, sys
import numpy as np
from haversack.devices.system import host

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    np.ones(64 * 1024 * 1024, np.uint8)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

default = min(faults() for _ in range(3))
kept = host.keep_freed_memory()
faults()
print(kept, default, min(faults() for _ in range(3)))
"""


GIVEN_BACK = """
from haversack.devices.system import host
from haversack.devices.memory import anonymous_bytes

pieces = [b"x" * 40_000 for _ in range(2000)]
kept = b"x" * 40_000  # lies above them, so that the heap cannot shrink
held = anonymous_bytes()
del pieces
before = held - anonymous_bytes()
host.give_back_freed_memory()
print(before, held - anonymous_bytes())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="malloc_trim is glibc's")
def test_freed_memory_goes_back_to_the_system() -> None:
    result = subprocess.run([sys.executable, "-c", GIVEN_BACK], capture_output=True, text=True)
    kept_by_the_heap, given_back = map(int, result.stdout.split())
    assert kept_by_the_heap < 40_000_000 < 75_000_000 < given_back


@pytest.mark.skipif(sys.platform != "linux", reason="mallopt is glibc's")
def test_a_large_array_after_another_takes_no_fresh_pages() -> None:
    result = subprocess.run([sys.executable, "-c", FAULTS], capture_output=True, text=True)
    kept, default, after = result.stdout.split()
    assert kept == "True"
    assert int(after) < int(default) / 4 < int(default)
