"""Pictures of what benchmarks wrote; a wrong file is one line."""

from pathlib import Path

import pytest

from haversack.tools.bench import plot

RESULTS = Path(plot.__file__).parents[1] / "results"
PNG = b"\x89PNG"


@pytest.mark.parametrize(
    ("what", "files"), [("policies", "policies.csv"), ("stream", "*_stream.csv")]
)
def test_what_comes_with_the_project_can_be_drawn(what: str, files: str, tmp_path: Path) -> None:
    picture = tmp_path / "out.png"
    results = [str(path) for path in RESULTS.glob(files)]
    assert plot.main([what, *results, str(picture)]) == 0
    assert picture.read_bytes().startswith(PNG) and picture.stat().st_size > 10_000


def test_another_table_or_none_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = str(tmp_path / "out.png")
    assert plot.main(["stream", str(RESULTS / "policies.csv"), out]) == 2
    assert "has no column 'rate_bytes_s': not stream" in capsys.readouterr().err
    (tmp_path / "empty.csv").write_text("share\n")
    assert plot.main(["stream", str(tmp_path / "empty.csv"), out]) == 2
    assert "has no rows" in capsys.readouterr().err
    assert plot.main(["stream", str(tmp_path / "no.csv"), out]) == 2
    assert "no.csv" in capsys.readouterr().err
