"""The text of --simulate-gpu."""

import pytest

from haversack.devices.errors import PromptError
from haversack.edge.simulated_gpu import SimulatedGpu, simulated_gpu
from haversack.offload.simulated import Link, Processor

GIB = 1024**3


def test_a_gpu_needs_memory_and_a_link() -> None:
    found = simulated_gpu("vram=2GiB,link=12GB/s")
    assert found == SimulatedGpu(2 * GIB, Link(12e9), Processor())
    assert str(found) == "2.0 GiB behind 12 GB/s"
    with found.open() as device:
        assert device.description == "2.0 GiB behind 12 GB/s"


def test_with_a_speed_of_its_memory_only_the_clock_counts() -> None:
    found = simulated_gpu("vram=1GiB, link=12GB/s, back=6GB/s, latency=5us, memory=300GB/s")
    assert found.link == Link(12e9, 5e-6, 6e9)
    assert found.processor == Processor(300e9, computes=False)
    assert str(found) == "1.0 GiB behind 12 GB/s, its own at 300 GB/s"


def test_without_it_threads_of_this_computer_compute() -> None:
    assert simulated_gpu("vram=1GiB,link=1GB/s,threads=2").processor == Processor(threads=2)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("vram=2GiB", "needs vram and link"),
        ("link=12GB/s,vram=2GiB,speed=3", "has 'speed=3'"),
        ("link=12GB/s,vram=2GiB,vram=3GiB", "has 'vram=3GiB'"),
        ("vram=2GiB,link=12GB", "give bytes a second"),
        ("vram=2GiB,link=0GB/s", "is zero"),
        ("vram=x,link=12GB/s", "vram=x"),
        ("vram=2GiB,link=12GB/s,latency=5", "give a number with us, ms or s"),
        ("vram=2GiB,link=12GB/s,threads=0", "give 1 or more"),
        ("", "has ''"),
    ],
)
def test_what_is_wrong_is_told(text: str, told: str) -> None:
    with pytest.raises(PromptError, match=told):
        simulated_gpu(text)
