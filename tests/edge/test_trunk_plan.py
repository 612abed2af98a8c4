"""As many layers as a device holds, found with few dry runs."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from haversack.devices.backends import Device
from haversack.devices.errors import PromptError
from haversack.devices.needs import DeviceNeeds, MemoryNeeds
from haversack.edge.trunk_plan import checked_trunk, may_hold_trunk, most_layers

FIXED_BYTES, LAYER_BYTES = 100, 10


def needs_of(num_layers: int) -> MemoryNeeds:
    return MemoryNeeds(0, 0, 0, (DeviceNeeds("CUDA0", num_layers * LAYER_BYTES, 0, FIXED_BYTES),))


@given(st.integers(0, 400), st.integers(1, 40))
def test_the_most_layers_that_fit(room_bytes: int, of_layers: int) -> None:
    tried = list[int]()

    def noted(num_layers: int) -> MemoryNeeds:
        tried.append(num_layers)
        return needs_of(num_layers)

    found = most_layers(noted, room_bytes, of_layers)
    wanted = min(of_layers, (room_bytes - FIXED_BYTES) // LAYER_BYTES)
    assert (found.num_layers if found else 0) == max(0, wanted)
    assert tried[0] == of_layers and len(tried) <= 1 + of_layers.bit_length()


def test_by_itself_only_a_gpu_of_this_computer_gets_layers() -> None:
    gpu, server = (Device(name, "", "GPU", 0) for name in ("CUDA0", "RPC[10.0.0.2:50052]"))
    assert may_hold_trunk(gpu, "auto") and not may_hold_trunk(server, "auto")
    assert may_hold_trunk(server, "device") and not may_hold_trunk(gpu, "host")
    with pytest.raises(PromptError, match="'gpu': give auto, host, device"):
        checked_trunk("gpu")
