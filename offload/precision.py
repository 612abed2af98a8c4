"""What a model that is streamed in two precisions is given, and what it counts.

The rule that gives an expert its level is `cache/precision.py`; the engine has it in C++, in
native/precision.cpp.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

from haversack.cache.precision import Thresholds, Weights
from haversack.quant.lowbit import LowCopies


@dataclass(frozen=True)
class Precision:
    """Has experts that matter little read as `low` copies, or not at all.

    `thresholds` are those of passes of few rows. In a larger batch nothing is skipped, and the
    experts with the fewest rows, which have at most `batch_low_share` of them, are read LOW.

    With `fitted`, the thresholds are those of the first rows alone: when some hundred rows were
    computed, it is given a sample of their routers' weights, and returns the others'.
    """

    low: LowCopies
    thresholds: Thresholds
    batch_low_share: float = 0.0
    fitted: Callable[[Weights], Thresholds] | None = field(default=None, compare=False)

    def __post_init__(self) -> None:
        if not 0 <= self.batch_low_share <= 1:
            raise ValueError(f"batch_low_share must be 0 to 1, not {self.batch_low_share}")


class LevelCounts(NamedTuple):
    """How often experts were used by level, how many LOW copies became HIGH while the drive was
    idle, and by how many bytes less was read than HIGH copies would have taken. `leaned` counts the
    experts that a row used only because they had a copy in a slot (`cache/routing.py`)."""

    high: int = 0
    low: int = 0
    skipped: int = 0
    upgraded: int = 0
    saved_bytes: int = 0
    leaned: int = 0
