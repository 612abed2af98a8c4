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
from typing import Any, Protocol

from haversack.devices import _native as native
from haversack.devices._native import own
from haversack.devices.crowd import Crowd
from haversack.devices.errors import HaversackError
from haversack.devices.forks import Birthplace
from haversack.devices.steps import Steps

# If the user has set how OpenMP's threads wait, OpenMP stays in use.
_USERS_SETTINGS = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")
_DECODE = native.llama_function("llama_decode")


class ContextOwner(Protocol):
    """What computes parts of a context's graphs: a device, by its `address`.

    `pass_end` are the addresses of a native function and of its argument: it is called after each
    pass, with whether that was computed to its last node, and returns a failure, 0 for none.
    """

    address: int | None

    @property
    def pass_end(self) -> tuple[int | None, int | None]: ...

    @property
    def goes_on(self) -> bool:
        """Whether passes may follow each other without `after_pass` in between."""
        ...

    def after_pass(self, failure: int) -> BaseException | None:
        """The error of a pass, or of the last of several, whose end returned `failure`, if any."""
        ...


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


_openmp_process: Birthplace | None = None  # whose threads OpenMP has made for a context


def refuse_dead_threads(num_threads: int) -> None:
    """OpenMP waits for its threads, which do not outlive a fork: a child could only hang."""
    global _openmp_process
    if num_threads == 1 or not why_fixed():
        return
    _openmp_process = _openmp_process or Birthplace()
    if not _openmp_process.is_here:
        raise HaversackError(
            "this process was forked from one whose model ran on OpenMP's threads, which it lacks:"
            f" start it anew (spawn) or give --threads 1; our own threads could, but {why_fixed()}"
        )


class Team:
    """Computes the passes of one context of `num_ranks` ranks with as many threads as pay beside
    other programs. Without our teams OpenMP computes them with a fixed number.

    `context` and `batch` are what llama_decode is called with; `owner` is the device that computes
    parts of the context's graphs.
    """

    def __init__(
        self, num_ranks: int, context: Any, batch: Any, owner: ContextOwner | None
    ) -> None:
        self._crowd = Crowd(num_ranks) if num_ranks > 1 and not why_fixed() else None
        self._pass = own.Pass(_DECODE, context, native.addressof(batch))
        if owner is not None:
            self._pass.owner, (self._pass.end, self._pass.engine) = owner.address, owner.pass_end
        self._address, self._batch = native.addressof(self._pass), batch

    def compute(self, num_rows: int) -> int:
        """Compute the batch, a pass of `num_rows` rows; return llama_decode's status, which means
        nothing if llama.cpp `gave_up`."""
        self._set(num_rows)
        status = own.pass_compute(self._address)
        if num_rows == 1 and self._crowd is not None:
            self._crowd.note(self._pass.pass_s, self._pass.delayed_s)
        return int(status)

    def go_on(self, steps: Steps) -> int:
        """Compute the batch, a pass of one row, and the `steps` after it; return the status of the
        last pass. A pass that tries how many threads pay is the last one."""
        self._set(1)
        crowd = self._crowd
        if crowd is not None and crowd.is_trying:
            steps.limit()
        status = own.pass_go_on(self._address, steps.address)
        if crowd is not None and steps.num_done:
            crowd.note(steps.passes_s, self._pass.delayed_s, steps.num_done)
        return int(status)

    def _set(self, num_rows: int) -> None:
        self._pass.is_single_row = num_rows == 1
        if self._crowd is not None:
            self._pass.num_threads, self._pass.spin_s = self._crowd.setting(num_rows)

    @property
    def gave_up(self) -> bool:
        """Return whether llama.cpp gave up in the latest pass."""
        return bool(self._pass.gave_up)

    @property
    def failure(self) -> int:
        """Return what the owner's `pass_end` returned of the latest pass."""
        return int(self._pass.failure)
