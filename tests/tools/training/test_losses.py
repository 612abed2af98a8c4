"""The log of a run: rows, going on after an interruption, the picture."""

import csv
from pathlib import Path

import pytest

from haversack.tools.training.losses import LossLog


def logged(path: Path, steps: range, log: LossLog | None = None) -> LossLog:
    log = log or LossLog(path)
    for step in steps:
        log.add(step, 6.0 / step, 1000.0, {"books": 5.0 / step} if step % 2 == 0 else {})
    log.save()
    return log


def rows(path: Path) -> list[dict[str, str]]:
    with path.open() as file:
        return list(csv.DictReader(file))


def test_every_step_is_a_row_and_is_printed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    logged(tmp_path / "losses.csv", range(1, 4))
    assert capsys.readouterr().out.splitlines()[1] == (
        "step 2  train 3.0000  tok_s 1000  books 2.5000"
    )
    assert [row["train"] for row in rows(tmp_path / "losses.csv")] == ["6.0000", "3.0000", "2.0000"]
    assert [row["books"] for row in rows(tmp_path / "losses.csv")] == ["", "2.5000", ""]


def test_steps_after_the_checkpoint_are_forgotten(tmp_path: Path) -> None:
    path = tmp_path / "losses.csv"
    logged(path, range(1, 6))
    again = LossLog(path)
    again.load(last_step=3)
    logged(path, range(4, 7), again)
    assert [row["step"] for row in rows(path)] == ["1", "2", "3", "4", "5", "6"]


def test_the_picture(tmp_path: Path) -> None:
    log = logged(tmp_path / "losses.csv", range(1, 9))
    log.draw(tmp_path / "losses.png", phase_steps=[4, 2])
    assert (tmp_path / "losses.png").read_bytes().startswith(b"\x89PNG")
