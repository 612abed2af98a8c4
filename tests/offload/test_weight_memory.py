"""The weights that llama.cpp computes with lie in memory for which huge pages are wanted."""

import re
from pathlib import Path

import pytest

from haversack.devices.llama import ContextShape
from haversack.edge import builtin_model
from haversack.offload.engine import open_resident

HUGE_PAGES = Path("/sys/kernel/mm/transparent_hugepage")
MAPPING = re.compile(r"^([0-9a-f]+)-([0-9a-f]+) [^\n]*$(?:\n(?![0-9a-f]+-)[^\n]*)*", re.MULTILINE)


def mapping_of(address: int) -> str:
    """Return what Linux says of the mapping that holds `address`."""
    for found in MAPPING.finditer(Path("/proc/self/smaps").read_text()):
        if int(found[1], 16) <= address < int(found[2], 16):
            return found[0]
    raise AssertionError(f"{address:#x} is in no mapping")


@pytest.mark.skipif(not HUGE_PAGES.exists(), reason="this system has no transparent huge pages")
def test_huge_pages_are_wanted_for_weights() -> None:
    engine = open_resident(builtin_model(), ContextShape(64, 32, 1))
    try:
        tensors = {tensor.name: tensor for tensor in engine.model.tensors() or []}
        middle = tensors["blk.4.ffn_up_exps.weight"]
        assert middle.is_on_host
        flags = mapping_of(middle.data_address).split("VmFlags:")[1].split()
        assert "hg" in flags  # MADV_HUGEPAGE
    finally:
        engine.close()
