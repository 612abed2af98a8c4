import pytest
from hypothesis import given
from hypothesis import strategies as st

from haversack.devices.errors import UnitError
from haversack.devices.units import UNIT_BYTES, format_bytes, format_need, parse_bytes, size_bytes


@pytest.mark.parametrize(
    ("text", "num_bytes"),
    [
        ("6GiB", 6 * 2**30),
        ("6GB", 6 * 10**9),
        ("512MiB", 512 * 2**20),
        ("1.5 GiB", 3 * 2**29),
        ("100kB", 100_000),
        ("100KB", 100_000),
        ("2kib", 2048),
        (" 6gib ", 6 * 2**30),
        ("+1TiB", 2**40),
        ("17B", 17),
        ("0.3kB", 300),  # exact: no binary fraction in between
        ("1.0005kB", 1000),  # part of a byte is rounded down
    ],
)
def test_a_size_is_a_number_and_a_unit(text: str, num_bytes: int) -> None:
    assert parse_bytes(text) == num_bytes


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("6", '"6" has no unit: write 6GiB or 6GB'),
        ("1.5", '"1.5" has no unit: write 1.5GiB or 1.5GB'),
        ("-6GiB", "negative"),
        ("-6", "negative"),
        ("0GiB", "is zero: write a size above zero"),
        ("0", "is zero: write a size above zero"),
        ("0.0G", "is zero: write a size above zero"),
        ("0.1B", "less than a byte"),
        ("nan", "write a number and a unit"),
        ("nanGiB", "write a number and a unit"),
        ("inf", "write a number and a unit"),
        ("", "write a number and a unit"),
        ("GiB", "write a number and a unit"),
        ("1e3MB", "write a number and a unit"),
        ("6,5GiB", "write a number and a unit"),
        ("٦GiB", "write a number and a unit"),
        ("9" * 5000 + "GiB", "write a number and a unit"),
        ("6G", "write 6GiB or 6GB"),
        ("6Gi", "write 6GiB or 6GB"),
        ("6k", "write 6KiB or 6kB"),
        ("6parsecs", 'unknown unit "parsecs": write B, kB'),
        ("6Gib/s", "write a number and a unit"),
    ],
)
def test_a_refusal_says_what_to_write(text: str, hint: str) -> None:
    with pytest.raises(UnitError) as caught:
        parse_bytes(text)
    assert hint in str(caught.value)


@pytest.mark.parametrize(
    ("num_bytes", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1.0 KiB"),
        (2**20 - 1, "1.0 MiB"),  # not "1024.0 KiB"
        (5_583_457_485, "5.2 GiB"),
        (2**60, "1048576.0 TiB"),
        (-(2**20), "-1.0 MiB"),
    ],
)
def test_bytes_for_people(num_bytes: int, text: str) -> None:
    assert format_bytes(num_bytes) == text


@given(st.integers(1, 2**50))
def test_what_is_shown_reads_back(num_bytes: int) -> None:
    shown = format_bytes(num_bytes)
    half_digit = 0.05 * UNIT_BYTES[shown.split()[1].lower()]
    assert abs(parse_bytes(shown) - num_bytes) <= half_digit + 1


@given(st.integers(1, 2**50))
def test_what_is_needed_suffices_as_it_is_read(num_bytes: int) -> None:
    shown = format_need(num_bytes)
    assert num_bytes <= parse_bytes(shown) <= parse_bytes(format_bytes(num_bytes)) * 1.1 + 1


@given(st.text())
def test_any_text_is_a_size_or_a_unit_error(text: str) -> None:
    try:
        assert parse_bytes(text) > 0
    except UnitError as error:
        assert "write" in str(error)


def test_a_number_of_bytes_is_whole_and_not_negative() -> None:
    assert (size_bytes(123), size_bytes("1KiB")) == (123, 1024)
    for wrong in (-1, 1.5, float("nan"), True, None, b"1GiB"):
        with pytest.raises(UnitError, match="is not a size: give whole bytes"):
            size_bytes(wrong)  # type: ignore[arg-type]
