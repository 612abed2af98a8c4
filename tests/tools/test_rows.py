"""The tables of tools, as files."""

from pathlib import Path

from haversack.tools.rows import write_rows


def test_columns_are_the_first_rows_and_lines_end_alike(tmp_path: Path) -> None:
    path = tmp_path / "table.csv"
    write_rows(path, [{"layer": 1, "hits": 0.5}, {"layer": 2, "hits": ""}])
    assert path.read_bytes() == b"layer,hits\n1,0.5\n2,\n"
