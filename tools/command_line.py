"""What the tools' command lines have in common: counts, tables, verdicts, and how a tool ends."""

import argparse
import csv
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import wraps
from pathlib import Path
from typing import Any

from haversack.devices.errors import HaversackError

USAGE_EXIT_CODE = 2

Main = Callable[[Sequence[str] | None], int]
OptionalMain = Callable[..., int]


def positive(text: str) -> int:
    """The whole number, 1 or more, that `text` says. Raises argparse's error for any other."""
    if not text.isascii() or not text.isdigit() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"{text!r} is no count: give a whole number, 1 or more")
    return int(text)


def tool(main: Main) -> OptionalMain:
    """`main`, whose arguments may be left out, and which ends with one line on stderr and exit code
    2 where the model, its files or the machine are at fault."""

    @wraps(main)
    def guarded(arguments: Sequence[str] | None = None) -> int:
        try:
            return main(arguments)
        except (HaversackError, OSError, RuntimeError, ValueError) as error:
            print(f"error: {error}", file=sys.stderr)
            return USAGE_EXIT_CODE

    return guarded


def verdict(text: str, holds: bool) -> bool:
    """Print what a bound says and whether it holds; returns the latter."""
    print(f"{text}: {'holds' if holds else 'FAILS'}", flush=True)
    return holds


def print_table(rows: Sequence[Mapping[str, str]]) -> None:
    """Print `rows`, at least one, all of the first one's columns, as a Markdown table."""
    print("| " + " | ".join(rows[0]) + " |")
    print("|" + "---|" * len(rows[0]))
    for row in rows:
        print("| " + " | ".join(row.values()) + " |")


def write_rows(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write the same as a CSV file. Raises OSError."""
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
