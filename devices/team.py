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
from functools import cache
from typing import Any

from haversack.devices import _native as native
from haversack.devices._native import own
from haversack.devices.crowd import Crowd

# If the user has set how OpenMP's threads wait, OpenMP stays in use.
_USERS_SETTINGS = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")
_DECODE = native.llama_function("llama_decode")


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
    other programs. Without our teams OpenMP computes them with a fixed number.

    `context` and `batch` are what llama_decode is called with; `owner` is the address of the device
    that computes parts of the context's graphs.
    """

    def __init__(self, num_ranks: int, context: Any, batch: Any, owner: int | None) -> None:
        self._crowd = Crowd(num_ranks) if num_ranks > 1 and not why_fixed() else None
        self._pass = own.Pass(_DECODE, context, native.addressof(batch), owner)
        self._address, self._batch = native.addressof(self._pass), batch

    def compute(self, num_rows: int) -> int:
        """Compute the batch, a pass of `num_rows` rows; return llama_decode's status, which means
        nothing if llama.cpp `gave_up`."""
        one, crowd = self._pass, self._crowd
        if crowd is None:
            return int(own.pass_compute(self._address))
        one.num_threads, one.spin_s = crowd.setting(num_rows)
        one.is_single_row = num_rows == 1
        status = own.pass_compute(self._address)
        if num_rows == 1:
            crowd.note(one.pass_s, one.delayed_s)
        return int(status)

    @property
    def gave_up(self) -> bool:
        """Return whether llama.cpp gave up in the latest pass."""
        return bool(self._pass.gave_up)
