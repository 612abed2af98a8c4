"""The replay of drafts that are trees: what ranks say of chains and of trees."""

from pathlib import Path

import pytest

from haversack.tools.bench.gate_replay import MACHINES, Machine, straight
from haversack.tools.bench.tree_drafts import best_speed, main, shapes

TWIN = Path(__file__).parents[2] / "data" / "models" / "tales-twin.gguf"


def test_where_the_likeliest_is_always_right_the_tree_is_the_chain() -> None:
    chain, tree = shapes([[1] * 20])
    assert chain == tree == [1, 2, 3, 4, 5, 6, 7]


def test_a_tree_holds_what_came_true_most_often() -> None:
    chain, tree = shapes([[2] * 20])
    assert chain == [1] * 7 and tree[:3] == [1, 2, 3]


def test_the_best_number_of_rows_is_taken() -> None:
    assert best_speed(Machine("dear", straight(1.0)), [1, 1.5, 2, 2, 2, 2, 2]) == 1
    assert best_speed(Machine("cheap", straight(0.1)), [1, 1.5, 2, 2, 2, 2, 2]) == 2 / 1.2


def test_a_short_run(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(TWIN), "--sets", "story", "--per-set", "1", "--tokens", "16"]) == 0
    assert capsys.readouterr().out.count("| story |") == len(MACHINES)
