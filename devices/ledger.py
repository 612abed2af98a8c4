"""Whose memory it is: what the models that are open hold of this process's anonymous memory, and
what everything else in the process holds."""

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from haversack.devices.memory import anonymous_bytes, slots_resident_bytes
from haversack.devices.system import host

_MIB = 1024 * 1024
_LEAST_BYTES = 64 * _MIB  # measured: interpreter, libraries and threads take 36 to 53
_MARGIN_BYTES = 8 * _MIB  # the least that a figure lies above what was measured
_SLACK_BYTES = 32 * _MIB  # how far a new figure lies above it


class Holding:
    """What one open model holds outside its slots: weights, caches, scratch.

    llama.cpp touches its scratch only as wide as batches come, so this grows after loading. Slots
    are not in it: they are counted where they lie (see `slots_resident_bytes`).
    """

    def __init__(self, reserved_bytes: int, most_bytes: int) -> None:
        """`reserved_bytes` are set aside for the model, `most_bytes` of them for what this is."""
        self.reserved_bytes, self.most_bytes = reserved_bytes, most_bytes
        self.num_bytes = 0

    def grow(self, num_bytes: int) -> None:
        """Count so many bytes more, up to what was planned."""
        self.num_bytes = min(self.most_bytes, self.num_bytes + max(0, num_bytes))


class Ledger:
    """The holdings of the models that are open; safe to use from any thread.

    One model is loaded at a time, so that what a load takes can be measured.
    """

    def __init__(self) -> None:
        self._loading = threading.RLock()
        self._lock = threading.Lock()
        self._holdings: list[Holding] = []
        self._figure_bytes = _LEAST_BYTES

    def others_bytes(self) -> int:
        """Anonymous memory that no open model holds, now: the interpreter, libraries, and
        whatever the application made. Memory that was freed does not count."""
        host.give_back_freed_memory()
        return self._outside_bytes()

    def process_bytes(self) -> int:
        """The same rounded up with slack, as plans are made with: equal while the process changes
        little. While another thread loads a model it is the last figure."""
        if self._loading.acquire(blocking=False):
            try:
                measured_bytes = self.others_bytes()
                with self._lock:
                    self._figure_bytes = steady_figure(measured_bytes, self._figure_bytes)
            finally:
                self._loading.release()
        return self._figure_bytes

    def untouched_bytes(self) -> int:
        """What is reserved for open models and not taken yet, such as empty slots."""
        with self._lock:
            open_bytes = sum(each.reserved_bytes - each.num_bytes for each in self._holdings)
        return max(0, open_bytes - slots_resident_bytes())

    @contextmanager
    def loading(self) -> Iterator[None]:
        """Load a model inside the block; loads of other threads wait."""
        with self._loading:
            yield

    @contextmanager
    def measured(self, holding: Holding) -> Iterator[None]:
        """Count what the process takes inside the block as the holding's."""
        before_bytes = self.others_bytes()
        try:
            yield
        finally:
            holding.grow(self.others_bytes() - before_bytes)

    def add(self, holding: Holding) -> None:
        """Count what it holds from now on."""
        with self._lock:
            self._holdings.append(holding)

    def remove(self, holding: Holding) -> None:
        """Count it no more: its memory is free."""
        with self._lock:
            self._holdings.remove(holding)

    def forget_threads(self) -> None:
        """Release what other threads held: in a process that was forked they do not exist."""
        self._loading, self._lock = threading.RLock(), threading.Lock()

    def _outside_bytes(self) -> int:
        with self._lock:
            held_bytes = sum(holding.num_bytes for holding in self._holdings)
        return max(0, anonymous_bytes() - slots_resident_bytes() - held_bytes)


def steady_figure(measured_bytes: int, last_bytes: int) -> int:
    """A figure at least 8 MiB above `measured_bytes`. It is the last one while that is at most 64
    MiB above, so that two plans in an unchanged process agree. Otherwise it is what a plain process
    takes once a model has run, or `measured_bytes` with slack if that is more."""
    least = max(_LEAST_BYTES, measured_bytes + _MARGIN_BYTES)
    if least <= last_bytes <= max(_LEAST_BYTES, measured_bytes + 2 * _SLACK_BYTES):
        return last_bytes
    return _LEAST_BYTES if least == _LEAST_BYTES else measured_bytes + _SLACK_BYTES


ledger = Ledger()  # the process has one memory, so it has one ledger
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=ledger.forget_threads)
