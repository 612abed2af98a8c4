"""What the tools' command lines share: options, tables, verdicts, and how a tool ends."""

import argparse
import csv
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import wraps
from pathlib import Path
from typing import Any

from haversack import edge
from haversack.devices.errors import HaversackError

USAGE_EXIT_CODE = 2

Main = Callable[[Sequence[str] | None], int]
OptionalMain = Callable[..., int]
Measured = Callable[..., Iterator[bool]]  # of a model's path and the counts by name


def positive(text: str) -> int:
    """Return the whole number, 1 or more, in `text`. Raises argparse's error for anything else."""
    if not text.isascii() or not text.isdigit() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"{text!r} is no count: give a whole number, 1 or more")
    return int(text)


def tool(main: Main) -> OptionalMain:
    """Wrap `main`: arguments may be left out, and an error of the model, its files or the machine
    becomes one line on stderr and exit code 2."""

    @wraps(main)
    def guarded(arguments: Sequence[str] | None = None) -> int:
        try:
            return main(arguments)
        except (HaversackError, OSError, RuntimeError, ValueError) as error:
            print(f"error: {error}", file=sys.stderr)
            return USAGE_EXIT_CODE

    return guarded


def lacking(error: ImportError, extra: str) -> SystemExit:
    """Return what ends a tool whose package is not installed, and says in one line which `extra`
    of ours brings it. Any other error of an import is raised."""
    if not isinstance(error, ModuleNotFoundError):
        raise error
    return SystemExit(
        f"error: this tool needs {error.name}, which is not installed:"
        f" pip install 'haversack[{extra}]'"
    )


def _parser(description: str | None) -> argparse.ArgumentParser:
    return argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )


def run_on_models(
    arguments: Sequence[str] | None,
    description: str | None,
    measured: Measured,
    counts: Mapping[str, tuple[int, str]],
    always: Sequence[Path] = (),
) -> int:
    """Measure the models of `always` and each MODEL of the command line, or the built-in model if
    there is none. Return 0 if all bounds hold.

    `counts` are options by name, each with its default and help. `measured` prints the results of a
    model and yields whether each holds.
    """
    parser = _parser(description)
    parser.add_argument("models", type=Path, nargs="*", metavar="MODEL")
    for name, (default, what) in counts.items():
        parser.add_argument(f"--{name}", type=positive, default=default, help=what)
    given = vars(parser.parse_args(arguments))
    models = [*always, *given.pop("models")] or [edge.builtin_model()]
    held = [holds for path in models for holds in measured(path, **given)]
    return 0 if all(held) else 1


def streaming_parser(description: str | None, tokens: int) -> argparse.ArgumentParser:
    """Return the parser of a tool that streams a MODEL with a share of its experts in slots;
    `tokens` is the default of --tokens."""
    parser = _parser(description)
    parser.add_argument("model", type=Path)
    parser.add_argument("--share", type=float, default=0.25, help="of the expert bytes")
    parser.add_argument("--tokens", type=positive, default=tokens)
    parser.add_argument("--rounds", type=positive, default=3)
    return parser


def prompts_parser(description: str | None, counts: Mapping[str, int]) -> argparse.ArgumentParser:
    """Return the parser of a tool that goes on from sets of prompts (`bench.speculation.read_sets`)
    and gives a table. `counts` are options by name, each with its default."""
    parser = _parser(description)
    parser.add_argument("--prompts", type=Path, action="append", default=[], metavar="PATH")
    parser.add_argument("--sets", action="append", default=[], metavar="NAME")
    parser.add_argument("--csv", type=Path)
    for name, default in counts.items():
        parser.add_argument(f"--{name}", type=positive, default=default)
    return parser


def traced_parser(description: str | None) -> argparse.ArgumentParser:
    """Return the parser of a tool that forces a recorded routing upon a MODEL."""
    parser = _parser(description)
    parser.add_argument("model", type=Path)
    parser.add_argument("--trace", type=Path, required=True, help="recorded routing (.npz)")
    parser.add_argument("--csv", type=Path, help="write the results there as well")
    return parser


def verdict(text: str, holds: bool) -> bool:
    """Print the line of a bound and whether it holds; return whether it holds."""
    print(f"{text}: {'holds' if holds else 'FAILS'}", flush=True)
    return holds


def print_table(rows: Sequence[Mapping[str, str]]) -> None:
    """Print `rows` as a Markdown table: at least one, and all with the columns of the first."""
    print("| " + " | ".join(rows[0]) + " |")
    print("|" + "---|" * len(rows[0]))
    for row in rows:
        print("| " + " | ".join(row.values()) + " |")


def give_table(rows: Sequence[Mapping[str, str]], csv_path: Path | None) -> None:
    """Print `rows`, and write them to `csv_path` as well if it is given. Raises OSError."""
    if csv_path is not None:
        write_rows(csv_path, rows)
    print_table(rows)


def write_rows(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write `rows`, as `print_table` takes them, to a CSV file. Raises OSError."""
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
