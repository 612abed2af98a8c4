"""Forked processes: a child has a copy of its parent's memory, but none of its threads.

A child that waits for a thread of its parent waits for ever. So an object that has threads
remembers the process that made it.
"""

import os

from haversack.devices.errors import ClosedError


class Birthplace:
    """Remembers the process that made an object."""

    def __init__(self) -> None:
        self._process_id = os.getpid()

    @property
    def is_here(self) -> bool:
        """Return whether this is that process, and no child of it."""
        return os.getpid() == self._process_id

    def check(self) -> None:
        """Raise ClosedError in a child of that process."""
        if not self.is_here:
            raise ClosedError(
                f"the model was loaded in process {self._process_id} and its threads stayed there:"
                f" load it in this one, {os.getpid()}, too"
            )
