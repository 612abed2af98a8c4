"""Pictures are refused before anything is measured if they could not be written in the end."""

import re
from pathlib import Path

import pytest

from haversack.devices.errors import PromptError
from haversack.edge.measure_options import BenchOptions, EvalOptions


def test_a_picture_without_a_place_is_refused_first(tmp_path: Path) -> None:
    nowhere = tmp_path / "missing/x.png"
    for path, why in ((nowhere, f"there is no folder {nowhere.parent}"), (tmp_path, "that is a")):
        said = re.escape(f"--png is {path}, but {why}") + ".*: give --png FILE in another folder"
        with pytest.raises(PromptError, match=said):
            BenchOptions(sweep=2, png=path)
        with pytest.raises(PromptError, match=said):
            EvalOptions(text=Path("text"), all=True, png=path)
    BenchOptions(sweep=2, png=tmp_path / "x.png")
