"""The page of flags is that of the commands as they are."""

from pathlib import Path

import typer
from rich.text import Text

from haversack.edge.cli import app
from haversack.tools.flags import _commands, main, page

PAGE = Path(__file__).parents[2] / "docs" / "flags.md"


def test_the_page_is_up_to_date() -> None:
    written = PAGE.read_text(encoding="utf-8")
    assert written == page(), "write it anew: python -m haversack.tools.flags docs/flags.md"


def test_the_page_names_commands_and_flags(tmp_path: Path) -> None:
    assert main([str(tmp_path / "flags.md")]) == 0
    text = (tmp_path / "flags.md").read_text(encoding="utf-8")
    assert "in CUDA0=6GiB or RPC[host:port]=6GiB, repeatable" in text
    assert "`plan MODEL`" in text and "`--ram` SIZE" in text and "`--json`" in text


def test_no_name_in_brackets_is_lost_as_markup() -> None:
    for name, command in _commands("", typer.main.get_command(app)):
        for parameter in command.params:
            assert not Text.from_markup(parameter.help or "").spans, (name, parameter.name)
