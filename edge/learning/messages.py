"""What a learner's process and its parent tell each other.

The parent's first message is a `Task`. The process asks for each lesson (`WANTED`), and tells what
came of it (`Progress`), or why it ends (a text).
"""

from dataclasses import dataclass
from pathlib import Path

WANTED = "wanted"


@dataclass(frozen=True)
class Task:
    """What is to be learnt: by the drafter at `path`, for a `pair`, kept in `adapter`. It takes at
    most `most_bytes`, and computes for `share` of the time, with `niceness` of 0 to 19."""

    path: Path
    adapter: Path
    pair: str
    most_bytes: int
    share: float
    niceness: int


@dataclass(frozen=True)
class Progress:
    """How many steps were taken, and how often the likeliest token was right at places that were
    not learnt from, before and after; -1 until that is known. `is_new`: the adapter was written."""

    num_steps: int
    right_before: float
    right_after: float
    is_new: bool


NOTHING = Progress(0, -1.0, -1.0, False)
