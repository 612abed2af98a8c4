"""Choices that lean to experts with a copy: by hand, and against what they promise."""

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from haversack.cache.routing import Leaning, leaning_choice

SCORES = np.array([3.0, 5.0, 1.0, 4.0, 2.0], np.float32)  # ranked 1 3 0 4 2


def chosen(resident: list[int], num_used: int, leaning: Leaning) -> list[int]:
    there = np.isin(np.arange(len(SCORES)), resident)
    return leaning_choice(SCORES, there, num_used, leaning).tolist()


def test_without_a_bias_the_router_decides() -> None:
    assert chosen([2, 4], 3, Leaning(0.0)) == [1, 3, 0]


def test_a_resident_expert_replaces_one_that_is_not_much_better() -> None:
    assert chosen([4], 3, Leaning(0.2)) == [1, 3, 0]  # 2 + 0.8 < 3
    assert chosen([4], 3, Leaning(0.3)) == [1, 3, 4]  # 2 + 1.2 > 3
    assert chosen([2, 4], 3, Leaning(0.8)) == [1, 4, 2]  # 1 + 3.2 > 4
    assert chosen([2, 4], 3, Leaning(0.8, num_kept=2)) == [1, 3, 4]
    assert chosen([0, 2, 4], 1, Leaning(1.0)) == [1]  # the first is always kept


def test_an_expert_that_may_not_be_chosen_is_not() -> None:
    scores = np.array([3.0, -np.inf, 1.0, 0.0], np.float32)
    there = np.array([False, True, False, True])
    assert leaning_choice(scores, there, 2, Leaning(0.5)).tolist() == [0, 3]
    assert leaning_choice(scores, there, 3, Leaning(0.1)).tolist() == [0, 2, 3]


def test_where_scores_say_nothing_the_router_decides() -> None:
    there = np.array([False, False, True])
    for unusable in ([0.5, np.nan, 0.4], [-np.inf] * 3):
        scores = np.array(unusable, np.float32)
        plain = leaning_choice(scores, np.zeros_like(there), 2, Leaning(1.0))
        assert leaning_choice(scores, there, 2, Leaning(1.0)).tolist() == plain.tolist()


def test_a_quarter_of_the_experts_stays() -> None:
    assert [Leaning.of(used, 0.1).num_kept for used in (1, 2, 4, 6, 8, 10)] == [1, 1, 1, 1, 2, 2]


def test_what_makes_no_sense_is_refused() -> None:
    for bias, num_kept in ((-0.1, 1), (1.1, 1), (float("nan"), 1), (0.5, 0)):
        with pytest.raises(ValueError, match="at least one expert is kept"):
            Leaning(bias, num_kept)


@given(
    st.lists(st.tuples(st.floats(-9, 9, width=32), st.booleans()), min_size=1, max_size=12),
    st.integers(1, 12),
    st.floats(0, 1, width=32),
    st.integers(1, 4),
)
def test_a_choice_keeps_its_promises(
    experts: list[tuple[float, bool]], num_used: int, bias: float, num_kept: int
) -> None:
    scores = np.array([score for score, _ in experts], np.float32)
    resident = np.array([there for _, there in experts])
    num_used = min(num_used, len(experts))

    def choose(there: npt.NDArray[np.bool_]) -> npt.NDArray[np.int32]:
        return leaning_choice(scores, there, num_used, Leaning(bias, num_kept))

    plain, leaned = choose(np.zeros_like(resident)), choose(resident)
    assert len(set(leaned.tolist())) == num_used
    assert set(plain[:num_kept].tolist()) <= set(leaned.tolist())
    assert (np.diff(scores[leaned]) <= 0).all()
    assert resident[leaned].sum() >= resident[plain].sum()
    lost = np.setdiff1d(plain, leaned)
    gained = np.setdiff1d(leaned, plain)
    assert not resident[lost].any() and resident[gained].all()
    if len(lost):  # what replaces an expert is worse by no more than the bias
        most = np.float32(bias) * (scores.max() - scores.min())
        assert scores[lost].max() - scores[gained].min() <= most * 1.001 + 1e-5
