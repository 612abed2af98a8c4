"""The weights that llama.cpp computes with lie in memory for which huge pages are wanted."""

import re
from pathlib import Path

import pytest

from haversack.devices.llama import ContextShape
from haversack.edge import builtin_model
from haversack.offload.engine import open_resident

HUGE_PAGES = Path("/sys/kernel/mm/transparent_hugepage")
ADDRESSES = re.compile("([0-9a-f]+)-([0-9a-f]+) ")  # a mapping's first line


def flags_of(address: int) -> list[str]:
    """Return the flags that Linux has of the mapping that holds `address`."""
    holds = False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if found := ADDRESSES.match(line):
            holds = int(found[1], 16) <= address < int(found[2], 16)
        elif holds and line.startswith("VmFlags:"):
            return line.split()[1:]
    raise AssertionError(f"{address:#x} is in no mapping")


@pytest.mark.skipif(not HUGE_PAGES.exists(), reason="this system has no transparent huge pages")
def test_huge_pages_are_wanted_for_weights() -> None:
    engine = open_resident(builtin_model(), ContextShape(64, 32, 1))
    try:
        tensors = {tensor.name: tensor for tensor in engine.model.tensors() or []}
        middle = tensors["blk.4.ffn_up_exps.weight"]
        assert middle.is_on_host
        assert "hg" in flags_of(middle.data_address)  # MADV_HUGEPAGE
    finally:
        engine.close()
