"""The binding to the drafters in our own library. Their sources are in native/."""

import ctypes as c
from collections.abc import Sequence
from typing import Any

from haversack.devices._native import Address, address_of_function, addressof, own

_prototype, _I, _L = own.own_prototype, c.c_int32, c.c_int64
suffixes_bytes = _prototype("suffixes_bytes", _L, _I)
drafter_new = _prototype("drafter_new", Address, _I, _L, Address, _L, Address)
drafter_propose = _prototype("drafter_propose", _I, Address, Address, _L, Address, Address, _I)
drafter_num_tokens = _prototype("drafter_num_tokens", _L, Address)
drafter_match_length = _prototype("drafter_match_length", _I, Address)
drafter_delete = _prototype("drafter_delete", None, Address)
DRAFTER_STOPS = address_of_function(_prototype("drafter_stops", c.c_bool, Address, _I))


class Watch(c.Structure):
    """struct Watch (native/drafter.hpp)"""

    _fields_ = (("drafter", Address), ("needs", Address), ("most", c.c_int32))

    @property
    def address(self) -> int:
        """Where it lies."""
        return addressof(self)


def int_array(values: Sequence[int]) -> Any:
    """int32_t [len(values)]"""
    return (c.c_int32 * len(values))(*values)


def double_array(num_values: int) -> Any:
    """double [num_values]"""
    return (c.c_double * num_values)()


def watch(drafter: int, needs: Any) -> Watch:
    """Return a watch of the drafter that looks at none of `needs` yet, a double array."""
    return Watch(drafter, addressof(needs), 0)
