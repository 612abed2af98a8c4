"""The heap keeps what was freed: shown in a process of its own, as it stays so until its end."""

import subprocess
import sys

import pytest

FAULTS = """
import resource, sys
import numpy as np
from haversack.devices.heap import keep_freed_memory

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    np.ones(64 * 1024 * 1024, np.uint8)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

default = min(faults() for _ in range(3))
kept = keep_freed_memory()
faults()
print(kept, default, min(faults() for _ in range(3)))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="mallopt is glibc's")
def test_a_large_array_after_another_takes_no_fresh_pages() -> None:
    result = subprocess.run([sys.executable, "-c", FAULTS], capture_output=True, text=True)
    kept, default, after = result.stdout.split()
    assert kept == "True"
    assert int(after) < int(default) / 4 < int(default)
