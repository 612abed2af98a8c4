"""The page of flags is that of the commands as they are."""

from pathlib import Path

from haversack.tools.flags import main, page

PAGE = Path(__file__).parents[2] / "docs" / "flags.md"


def test_the_page_is_up_to_date() -> None:
    written = PAGE.read_text(encoding="utf-8")
    assert written == page(), "write it anew: python -m haversack.tools.flags docs/flags.md"


def test_the_page_names_commands_and_flags(tmp_path: Path) -> None:
    assert main([str(tmp_path / "flags.md")]) == 0
    text = (tmp_path / "flags.md").read_text(encoding="utf-8")
    assert "`plan MODEL`" in text and "`--ram` SIZE" in text and "`--json`" in text
