"""Sizes as people write them: "6GiB" to bytes and back; only the i tells binary from decimal."""

import re
from decimal import Decimal
from numbers import Integral

from haversack.devices.errors import UnitError

UNIT_BYTES = {
    "b": 1,
    "kb": 10**3,
    "mb": 10**6,
    "gb": 10**9,
    "tb": 10**12,
    "kib": 2**10,
    "mib": 2**20,
    "gib": 2**30,
    "tib": 2**40,
}
_SIZE = re.compile(r"([+-]?)([0-9]{1,15}(?:\.[0-9]{1,6})?) ?([a-z]*)", re.ASCII | re.IGNORECASE)


def size_bytes(size: str | int) -> int:
    """Return the bytes of `size`, a text such as "6GiB" or a number of bytes. Raises UnitError."""
    if isinstance(size, str):
        return parse_bytes(size)
    if isinstance(size, bool) or not isinstance(size, Integral) or size < 0:
        raise UnitError(f'{size!r} is not a size: give whole bytes, or a text such as "6GiB"')
    return int(size)


def parse_bytes(text: str) -> int:
    """Return the bytes of a size such as "6GiB", "1.5 GiB", "100kB", rounded down to whole bytes.

    Raises UnitError for other texts; the message says what to write instead.
    """
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        raise UnitError(f'"{text}" is not a size: write a number and a unit, as in 6GiB or 512MiB')
    sign, number, unit = match.groups()
    if sign == "-":
        raise UnitError(f'"{text}" is negative: write a size above zero, as in 6GiB or 512MiB')
    if not Decimal(number):
        raise UnitError(f'"{text}" is zero: write a size above zero, as in 6GiB or 512MiB')
    if not unit:
        raise UnitError(f'"{text}" has no unit: write {number}GiB or {number}GB')
    if unit.lower() not in UNIT_BYTES:
        raise UnitError(_unknown_unit(text, number, unit))
    num_bytes = int(Decimal(number) * UNIT_BYTES[unit.lower()])
    if num_bytes == 0:
        raise UnitError(f'"{text}" is less than a byte: write a size above zero, as in 6GiB')
    return num_bytes


def format_bytes(num_bytes: int) -> str:
    """Return a binary size for people: "5.2 GiB", "0 B", "-1.0 MiB"; whole bytes below 1 KiB.

    `parse_bytes` reads it back to within half of the digit shown.
    """
    sign, rest = ("-", -num_bytes) if num_bytes < 0 else ("", num_bytes)
    if rest < 1024:
        return f"{sign}{rest} B"
    for unit in ("KiB", "MiB", "GiB"):
        shown = f"{rest / UNIT_BYTES[unit.lower()]:.1f}"
        if float(shown) < 1024:  # 1023.96 KiB would read "1024.0 KiB": that is 1.0 MiB
            return f"{sign}{shown} {unit}"
    return f"{sign}{rest / UNIT_BYTES['tib']:.1f} TiB"


def format_need(num_bytes: int) -> str:
    """Return the same rounded up, so that a budget of the size shown suffices."""
    shown = format_bytes(num_bytes)
    number, unit = shown.split()
    if int(Decimal(number) * UNIT_BYTES[unit.lower()]) >= num_bytes:
        return shown
    return f"{Decimal(number) + Decimal('0.1')} {unit}"


def _unknown_unit(text: str, number: str, unit: str) -> str:
    letter = unit[0].upper()
    if letter in "KMGT" and unit.lower() in (letter.lower(), letter.lower() + "i"):
        decimal = "kB" if letter == "K" else f"{letter}B"
        return f'"{text}" lacks the B of bytes: write {number}{letter}iB or {number}{decimal}'
    return f'"{text}" has the unknown unit "{unit}": write B, kB, MB, GB, TB, KiB, MiB, GiB or TiB'
