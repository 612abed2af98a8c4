"""Guesses are worth a read where those like them were right every other time."""

import random

import numpy as np
import pytest

from haversack.cache.odds import DEPTH, LEAST_CHANCE, QUIET_TOKENS, Odds


def test_all_are_trusted_at_first() -> None:
    odds = Odds(8, 1)
    for depth in range(1, DEPTH + 1):
        assert odds.are_worth(depth, np.arange(8)).all()


@pytest.mark.parametrize("chance", [0.05, 0.3, 0.7, 0.95])
def test_a_rank_is_trusted_where_it_is_right_often_enough(chance: float) -> None:
    odds, rng = Odds(4, 1), random.Random(2)
    for _ in range(1000):
        odds.note(2, 3, rng.random() < chance)
    assert odds.are_worth(2, np.array([3])) == [chance > LEAST_CHANCE]
    assert odds.chances[1, 3] == pytest.approx(chance, abs=0.2)
    assert odds.are_worth(2, np.array([0, 1, 2])).all()  # each by its own
    assert odds.are_worth(1, np.array([3])).all()


def test_a_rank_that_becomes_right_is_trusted_again() -> None:
    odds = Odds(1, 1)
    for _ in range(500):
        odds.note(1, 0, right=False)
    assert not odds.are_worth(1, np.array([0]))
    for _ in range(100):
        odds.note(1, 0, right=True)
    assert odds.are_worth(1, np.array([0]))


def test_a_layer_that_misses_nothing_for_long_is_left_alone_until_it_misses() -> None:
    odds = Odds(1, 2)
    for _ in range(QUIET_TOKENS):
        assert odds.may_miss(0)
        odds.note_token(0, missed=False)
    assert not odds.may_miss(0)
    assert odds.may_miss(1)
    odds.note_token(0, missed=True)
    assert odds.may_miss(0)
