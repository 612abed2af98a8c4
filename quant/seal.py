"""The seal at the end of a trunk file, which shows whether the trunk was cut, zeroed or changed.

    bytes     what
    8 x N     digest of each tensor but the experts' holes, in the file's order
    16        "haversack seal 1"
    8         N, little-endian
    8         length of the GGUF header
    8         digest of the trunk's name, the two numbers, the header and the N digests

llama.cpp ignores what follows the last tensor. The trunk's name stands for its model, so a trunk of
another model under this name is noticed too. Bytes between tensors are in no digest, because they
are never read.
"""

import os
import struct
from collections.abc import Collection
from pathlib import Path
from typing import BinaryIO, NamedTuple

from haversack.devices.checksum import DIGEST_BYTES, Checksum
from haversack.devices.errors import DamagedTrunkError, StorageError
from haversack.devices.ggml import GgufHeader, TensorInfo
from haversack.devices.system import host

_MAGIC = b"haversack seal 1"
_NUMBERS = struct.Struct("<QQ")
_END = struct.Struct(f"<{len(_MAGIC)}s{_NUMBERS.size}s{DIGEST_BYTES}s")


class SealedTensor(NamedTuple):
    """A tensor of a trunk and the digest that its bytes had when they were written."""

    tensor: TensorInfo
    digest: bytes

    def is_in_memory(self, address: int) -> bool:
        """Return whether its bytes lie at `address`. Other threads run meanwhile."""
        checksum = Checksum(b"")
        checksum.add_memory(address, self.tensor.num_bytes)
        return checksum.digest() == self.digest

    def is_in_file(self, file: BinaryIO) -> bool:
        """Return whether its bytes are in the trunk open as `file`. Raises StorageError."""
        checksum = Checksum(b"")
        checksum.add_file(file, self.tensor.offset, self.tensor.num_bytes)
        return checksum.digest() == self.digest


class SealWriter:
    """Makes the seal while a trunk is written."""

    def __init__(self, trunk_name: str, header: bytes) -> None:
        self._name, self._header = trunk_name, header
        self._tensor = Checksum(b"")
        self._digests: list[bytes] = []

    def add(self, data: bytes) -> None:
        """Add the next bytes of a tensor."""
        self._tensor.add(data)

    def end_tensor(self) -> None:
        """Note that all bytes of the tensor were added."""
        self._digests.append(self._tensor.digest())
        self._tensor = Checksum(b"")

    def seal(self) -> bytes:
        """Return what to write at the end of the file."""
        numbers = _NUMBERS.pack(len(self._digests), len(self._header))
        table = b"".join(self._digests)
        checksum = Checksum(os.fsencode(self._name) + numbers)
        checksum.add(self._header)
        checksum.add(table)
        return table + _END.pack(_MAGIC, numbers, checksum.digest())


def read_seal(trunk: Path, holes: Collection[str]) -> list[SealedTensor]:
    """Return the tensors of a trunk that have data (`holes` names the others), to be compared.

    Compares the header and the seal itself, before llama.cpp reads them. Raises DamagedTrunkError
    if they are not as they were written.
    """
    try:
        with trunk.open("rb", buffering=0) as file:
            digests = _checked_digests(trunk, file)
        with GgufHeader(trunk) as header:
            tensors = [tensor for tensor in header.tensors if tensor.name not in holes]
        if len(tensors) != len(digests):
            raise StorageError("it is another model's")
    except OSError as error:
        raise damaged(trunk, error.strerror or error) from error
    return list(map(SealedTensor, tensors, digests))


def _checked_digests(trunk: Path, file: BinaryIO) -> list[bytes]:
    length = os.fstat(file.fileno()).st_size
    end = host.read_bytes(file.fileno(), _END.size, max(0, length - _END.size))
    if len(end) < _END.size or not end.startswith(_MAGIC):
        raise StorageError("its end is missing or was changed")
    _, numbers, expected = _END.unpack(end)
    num_tensors, header_bytes = _NUMBERS.unpack(numbers)
    table_bytes = DIGEST_BYTES * num_tensors
    table_start = length - _END.size - table_bytes
    checksum = Checksum(os.fsencode(trunk.stem) + numbers)
    if 0 <= header_bytes <= table_start:
        checksum.add_file(file, 0, header_bytes)
        checksum.add_file(file, table_start, table_bytes)
    if checksum.digest() != expected:
        raise StorageError("its header or its end was changed, or is another model's")
    table = host.read_bytes(file.fileno(), table_bytes, table_start)
    return [table[i : i + DIGEST_BYTES] for i in range(0, table_bytes, DIGEST_BYTES)]


def damaged(trunk: Path, why: object) -> DamagedTrunkError:
    """Return the error for a trunk that is not as it was written."""
    return DamagedTrunkError(f"the trunk file {trunk} is damaged: {why}")


def compare_file(trunk: Path, holes: Collection[str]) -> None:
    """Read all of a trunk. Raises DamagedTrunkError if it is not as it was written."""
    sealed = read_seal(trunk, holes)
    try:
        with trunk.open("rb", buffering=0) as file:
            for tensor in sealed:
                if not tensor.is_in_file(file):
                    raise StorageError(f"{tensor.tensor.name} was changed")
    except OSError as error:
        raise damaged(trunk, error.strerror or error) from error


def is_whole(trunk: Path, holes: Collection[str]) -> bool:
    """Read all of a trunk; return whether it is as it was written."""
    try:
        compare_file(trunk, holes)
    except DamagedTrunkError:
        return False
    return True
