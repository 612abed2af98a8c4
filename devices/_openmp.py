"""How llama.cpp's threads wait for each other between two steps of a graph.

GNU's OpenMP lets them spin for long, which is ruinous on a busy machine: beside one other busy
process a token of a small model took 704 ms instead of 10 (2 threads on 2 cores). If they look up
10,000 times (0.2 to 0.5 ms, as long as a processor's pause is) it takes 64, with no spin 17; but a
thread that sleeps must be woken after every look at the router's choice, which costs the hook 5 %
of its speed on a quiet machine, and made a token that streams take 68 ms in place of 43.
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
