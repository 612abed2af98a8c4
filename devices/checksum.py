"""A fast checksum of bytes in memory or in a file; sources in devices/native/checksum.cpp."""

import os
from typing import BinaryIO

import numpy as np

from haversack.devices import _native as native
from haversack.devices._native import own
from haversack.devices.errors import StorageError

_FILE_TOO_SHORT = 1
_STEP_BYTES = 64 * 1024 * 1024  # of a file: Ctrl-C is seen between two steps
DIGEST_BYTES = 8


class Checksum:
    """Computes the checksum of bytes that come piece by piece. It finds damage, not forgery.

    Zeros at the end may not change it, so the caller must check the number of bytes itself.
    """

    def __init__(self, seed: bytes) -> None:
        """`seed` names what the bytes belong to: equal bytes with another seed have another
        digest."""
        self._fields = own.Checksum()
        self._fields.lanes[:] = range(1, len(self._fields.lanes) + 1)
        self.add(seed)
        own.checksum_pad(self._fields)

    def add(self, data: bytes) -> None:
        """Add `data`."""
        array = np.frombuffer(data, np.uint8)
        self.add_memory(native.address_of(array), len(array))

    def add_memory(self, address: int, num_bytes: int) -> None:
        """Add `num_bytes` of memory from `address` on. Other threads run meanwhile."""
        own.checksum_add(self._fields, address, num_bytes)

    def add_file(self, file: BinaryIO, offset: int, num_bytes: int) -> None:
        """Add a part of an open file. Other threads run meanwhile. Raises StorageError if the drive
        fails or the file is too short."""
        for start in range(offset, offset + num_bytes, _STEP_BYTES):
            step_bytes = min(_STEP_BYTES, offset + num_bytes - start)
            status = own.checksum_add_file(self._fields, file.fileno(), start, step_bytes)
            if status == _FILE_TOO_SHORT:
                raise StorageError(f"it ends before byte {offset + num_bytes}")
            if status < 0:
                raise StorageError(f"it cannot be read: {os.strerror(-status)}")

    def digest(self) -> bytes:
        """Return the checksum of all bytes added. Nothing may be added after it."""
        return int(own.checksum_digest(self._fields)).to_bytes(DIGEST_BYTES, "little")
