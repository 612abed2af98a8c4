"""The threads that compute llama.cpp's graphs, and how they wait for each other.

llama.cpp splits a graph among OpenMP's threads, which wait for each other after every node. Beside
other programs, they wait for a thread that has no processor: a token of a small model took 10 times
as long beside two busy processes on two cores. On Linux our own teams (native/team.hpp) replace
OpenMP while a context of ours computes. Other users of llama.cpp in the process keep OpenMP. The
`threads` of a context are then ranks: they decide how the work is split, and so every bit of the
result. How many threads run the ranks, and how long a thread spins before it sleeps, may change
between two passes.
"""

import os
import sys
import threading
import time
from functools import cache

from haversack.devices import _native as native
from haversack.devices._native import own
from haversack.devices.crowd import Crowd

# If the user has set how OpenMP's threads wait, OpenMP stays in use.
_USERS_SETTINGS = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")


@cache
def why_fixed() -> str:
    """Return why OpenMP computes llama.cpp's graphs with a fixed number of threads, or '' if our
    teams compute them. The first call puts our teams in place."""
    if sys.platform != "linux":
        return "threads adapt to a busy machine on Linux only"
    for name in _USERS_SETTINGS:
        if name in os.environ:
            return f"{name} is set: unset it to have threads adapt to a busy machine"
    if own.team_take_over(native.address_of_function(native.ggml_backend_cpu_init)) == 0:
        return "llama.cpp was built with an OpenMP other than GCC's: threads do not adapt"
    return ""


class Team:
    """Computes the passes of one context of `num_ranks` ranks with as many threads as pay beside
    other programs. Without our teams OpenMP computes them with a fixed number."""

    def __init__(self, num_ranks: int) -> None:
        self._crowd = Crowd(num_ranks) if num_ranks > 1 and not why_fixed() else None
        self._thread = 0  # the thread whose team's delays `_delayed_s` counts
        self._delayed_s = self._began_s = 0.0

    def begin(self, num_rows: int) -> None:
        """Note that the calling thread begins to compute a pass of `num_rows` rows."""
        if self._crowd is None:
            return
        thread = threading.get_ident()
        if thread != self._thread:
            self._thread, self._delayed_s = thread, float(own.team_delayed_s())
        own.team_set(*self._crowd.setting(num_rows))
        self._began_s = time.perf_counter()

    def end(self, num_rows: int) -> None:
        """Note that the pass has ended."""
        if self._crowd is None:
            return
        pass_s = time.perf_counter() - self._began_s
        own.team_rest()
        before_s, self._delayed_s = self._delayed_s, float(own.team_delayed_s())
        if num_rows == 1:  # delays in a pass of several rows tell nothing of single tokens
            self._crowd.note(pass_s, self._delayed_s - before_s)
