"""How llama.cpp's threads wait for each other between two steps of a graph.

GNU's OpenMP lets them spin for about a millisecond, which gains nothing measurable on a quiet
machine and is ruinous on a busy one: beside one other busy process a token took 40 times as long
(2 threads on 2 cores, 704 ms against 17 ms). So they spin for a few microseconds and then sleep.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager

_SPIN_COUNT = "1000"
_SETTINGS = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")


@contextmanager
def brief_spinning() -> Iterator[None]:
    """Load OpenMP inside the block: it reads its settings then. What the user has set stands,
    and other programs that this process starts are not affected."""
    if any(name in os.environ for name in _SETTINGS):
        yield
        return
    os.environ["GOMP_SPINCOUNT"] = _SPIN_COUNT
    try:
        yield
    finally:
        del os.environ["GOMP_SPINCOUNT"]
