"""What a process inherits from the one that it was forked from: its memory, but not its threads.

A child that waits for a thread of its parent's waits for ever. So what belongs to threads knows the
process that it was made in.
"""

import os

from haversack.devices.errors import ClosedError


class Birthplace:
    """The process that something was made in."""

    def __init__(self) -> None:
        self._process_id = os.getpid()

    @property
    def is_here(self) -> bool:
        """Whether this is that process, and no child of it."""
        return os.getpid() == self._process_id

    def check(self) -> None:
        """Raises ClosedError in a child of that process."""
        if not self.is_here:
            raise ClosedError(
                f"the model was loaded in process {self._process_id} and its threads stayed there:"
                f" load it in this one, {os.getpid()}, too"
            )
