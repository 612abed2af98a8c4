"""How llama.cpp's threads wait for each other between two steps of a graph.

GNU's OpenMP lets them spin for about a millisecond, which is ruinous on a busy machine: beside one
other busy process a token of a small model took 704 ms instead of 10 (2 threads on 2 cores). With a
spin of some 40 microseconds it takes 64, with none 17; but a thread that sleeps must be woken after
every look at the router's choice, which costs the hook 5 % of its speed on a quiet machine.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager

_SPIN_COUNT = "10000"
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
