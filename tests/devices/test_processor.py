"""What the processor can do, by what the system tells."""

import sys
from pathlib import Path

import pytest

from haversack.devices import processor

INTEL = "processor\t: 0\nflags\t\t: fpu SSE4_2 avx2\n\nprocessor\t: 1\nflags\t\t: fpu avx2 fma\n"
ARM = "processor\t: 0\nFeatures\t: fp asimd sve\n"


@pytest.mark.parametrize(
    ("told", "expected"),
    [(INTEL, {"fpu", "sse4_2", "avx2"}), (ARM, {"fp", "asimd", "sve"}), ("processor\t: 0", None)],
)
def test_the_first_processor_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, told: str, expected: set[str] | None
) -> None:
    (tmp_path / "cpuinfo").write_text(told)
    monkeypatch.setattr(processor, "_CPU_INFO", tmp_path / "cpuinfo")
    assert processor.instruction_sets() == expected


def test_a_system_that_tells_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processor, "_CPU_INFO", tmp_path / "none")
    assert processor.instruction_sets() is None


@pytest.mark.skipif(sys.platform != "linux", reason="others tell nothing")
def test_this_processor_is_known() -> None:
    assert processor.instruction_sets()
