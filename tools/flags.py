"""Write the page of all commands and flags, from the commands themselves.

python -m haversack.tools.flags docs/flags.md
"""

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import typer
from rich.text import Text

from haversack.edge.cli import app
from haversack.tools.command_line import tool

_HEAD = """# Every command and flag

`haversack COMMAND --help` shows the flags of one command. This page is written by
`python -m haversack.tools.flags docs/flags.md`.
"""


def page() -> str:
    """Return the page: a table of the commands, then one of the flags with the commands that take
    them."""
    commands = dict(sorted(_commands("", typer.main.get_command(app))))
    lines = [_HEAD, "| command | |", "|---|---|"]
    for name, command in commands.items():
        lines.append(f"| `{_usage(name, command)}` | {_first_paragraph(command)} |")
    lines += ["", "| flag | commands | |", "|---|---|---|", *_flags(commands)]
    return "\n".join(lines) + "\n"


def _commands(prefix: str, group: Any) -> Iterator[tuple[str, Any]]:
    """Yield each command with its name, those of a group with the group's name before."""
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from _commands(f"{prefix}{name} ", command)
        else:
            yield f"{prefix}{name}", command


def _usage(name: str, command: Any) -> str:
    arguments = [each for each in command.params if not _is_flag(each)]
    return " ".join([name, *(each.metavar or each.name.upper() for each in arguments)])


def _is_flag(parameter: Any) -> bool:
    return str(parameter.opts[0]).startswith("-")


def _first_paragraph(command: Any) -> str:
    return " ".join(str(command.help or "").partition("\n\n")[0].split())


def _flags(commands: dict[str, Any]) -> Iterator[str]:
    taken_by: dict[tuple[str, str], list[str]] = {}
    for name, command in commands.items():
        for option in command.params:
            if _is_flag(option):
                taken_by.setdefault((_written(option), _cell(option.help)), []).append(name)
    for (written, what), names in sorted(taken_by.items(), key=lambda row: row[0][0].lstrip("`-")):
        yield f"| {written} | {', '.join(names)} | {what} |"


def _written(option: Any) -> str:
    names = ", ".join(f"`{each}`" for each in sorted(option.opts, key=len, reverse=True))
    return names if option.is_flag else f"{names} {_cell(option.metavar)}".rstrip()


def _cell(text: str | None) -> str:
    plain = Text.from_markup(text or "").plain  # as it is shown
    return plain.replace("|", "\\|").replace("\n", " ")


@tool
def main(arguments: Sequence[str] | None) -> int:
    """Write the page that the command line names; the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("page", type=Path)
    parser.parse_args(arguments).page.write_text(page(), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
