"""The rule of mixed precision: by hand, against a plain loop in float32, on recorded routing."""

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from haversack.cache.precision import (
    HIGH,
    LOW,
    SKIP,
    Thresholds,
    fit,
    gains_little,
    levels,
    relative_weight,
    scores,
)
from haversack.tools.routing.measures import recorded_traces

HOBBIT = Thresholds(0.6, 0.9)


def row(*weights: float) -> npt.NDArray[np.float32]:
    return np.array([weights], np.float32)


def recorded() -> dict[str, npt.NDArray[np.float32]]:
    """The routers' weights of the recorded models, by the first word of the name."""
    return {
        trace.name.partition("-")[0]: np.concatenate(trace.weights)
        for trace in recorded_traces()
        if trace.weights
    }


# -------------------------------------------------------------------- one row
def test_a_score_is_the_share_of_the_weight_ranked_above() -> None:
    np.testing.assert_allclose(scores(row(0.5, 0.3, 0.2)), [[0, 0.5, 0.8]], atol=1e-6)
    np.testing.assert_allclose(scores(row(0.2, 0.5, 0.3)), [[0.8, 0, 0.5]], atol=1e-6)
    np.testing.assert_allclose(scores(row(2, 5, 3)), [[0.8, 0, 0.5]], atol=1e-6)


def test_equal_weights_rank_in_the_order_of_the_choice() -> None:
    assert scores(row(1, 1, 1, 1)).tolist() == [[0, 0.25, 0.5, 0.75]]


def test_levels_by_hand() -> None:
    assert levels(row(0.7, 0.25, 0.05), HOBBIT).tolist() == [[HIGH, LOW, SKIP]]
    assert levels(row(0.55, 0.25, 0.2), HOBBIT).tolist() == [[HIGH, HIGH, LOW]]
    assert levels(row(0.7, 0.25, 0.05), Thresholds(0.6)).tolist() == [[HIGH, LOW, LOW]]
    assert levels(row(0.7, 0.25, 0.05), Thresholds(0.6, 0.6)).tolist() == [[HIGH, SKIP, SKIP]]


def test_a_score_equal_to_a_threshold_stays_below_it() -> None:
    assert levels(row(3, 3, 2), Thresholds(0.375, 0.75)).tolist() == [[HIGH, HIGH, LOW]]


def test_by_default_everything_is_wanted_high() -> None:
    assert levels(row(1, 1e-30, 0, 0), Thresholds()).tolist() == [[HIGH] * 4]


@pytest.mark.parametrize("weights", [(0, 0), (1, float("nan")), (1, -0.5), (1, float("inf"))])
def test_weights_that_say_nothing_leave_all_high(weights: tuple[float, ...]) -> None:
    assert levels(row(*weights), Thresholds(0, 0)).tolist() == [[HIGH, HIGH]]


@pytest.mark.parametrize("wrong", [(-0.1, 1), (0.9, 0.6), (0.5, 1.1), (float("nan"), 1)])
def test_thresholds_that_make_no_sense_are_refused(wrong: tuple[float, float]) -> None:
    with pytest.raises(ValueError, match="0 <= low <= skip <= 1"):
        Thresholds(*wrong)


def plain_levels(weights: list[float], thresholds: Thresholds) -> list[int]:
    """The rule as the engine computes it: one expert after the other, in float32."""
    given = np.array(weights, np.float32)
    ranked = sorted(range(len(given)), key=lambda place: (-given[place], place))
    above, sums = np.float32(0), []
    for place in ranked:
        sums.append(above)
        above = np.float32(above + given[place])
    found = [HIGH] * len(given)
    for place, sum_above in zip(ranked, sums, strict=True):
        score = np.float32(sum_above / above) if above > 0 else np.float32(0)
        found[place] = int(score > np.float32(thresholds.low)) + int(
            score > np.float32(thresholds.skip)
        )
    return found


shares = st.floats(0, 1, width=32)


@given(st.lists(st.floats(0, 1, width=32), min_size=1, max_size=10), shares, shares)
def test_levels_are_those_of_a_plain_loop(weights: list[float], one: float, other: float) -> None:
    thresholds = Thresholds(min(one, other), max(one, other))
    assert levels(row(*weights), thresholds).tolist() == [plain_levels(weights, thresholds)]


# ------------------------------------------------------------------------- fit
def test_hobbits_thresholds_on_the_two_best_of_eight() -> None:
    """Two of eight experts with normal scores, as spread as Mixtral's: 67 / 30 / 3 percent."""
    logits = 1.5 * np.random.default_rng(0).normal(size=(20_000, 8))
    best = np.sort(logits, axis=1)[:, :-3:-1]
    weights = np.exp(best - best[:, :1]).astype(np.float32)
    counted = np.bincount(levels(weights, HOBBIT).ravel()) / weights.size
    np.testing.assert_allclose(counted, [0.67, 0.30, 0.03], atol=0.01)
    fitted = fit(weights, 0.30, 0.03)
    np.testing.assert_allclose([fitted.low, fitted.skip], [0.6, 0.9], atol=0.03)


@pytest.mark.parametrize("shares", [(0.3, 0.0), (0.4, 0.1), (0.0, 0.2), (0.05, 0.0), (0.0, 0.0)])
def test_a_fit_gives_the_shares_that_were_asked_for(shares: tuple[float, float]) -> None:
    for weights in recorded().values():
        wanted = levels(weights, fit(weights, *shares))
        for level, share in zip((LOW, SKIP), shares, strict=True):
            assert share - 0.001 <= (wanted == level).mean() <= share + 0.001


def test_a_fit_takes_less_where_scores_are_equal() -> None:
    assert fit(np.tile(row(1, 1), (50, 1)), 0.3) == Thresholds(0.5)
    assert fit(np.ones((10, 1), np.float32), 0.9, 0.1) == Thresholds(
        0, 0
    )  # the first of a row is always HIGH


def test_impossible_shares_are_refused() -> None:
    for wanted in ((0.7, 0.4), (-0.1, 0.5), (0.5, -0.1)):
        with pytest.raises(ValueError, match="together 1 at most"):
            fit(row(1, 1), *wanted)


def test_a_model_with_even_weights_gains_little() -> None:
    expected = {"qwen3": (0.70, False), "gemma4": (0.63, False), "gptoss": (0.83, True)}
    for name, weights in recorded().items():
        thresholds = fit(weights, 0.45)
        number, little = expected[name]
        assert relative_weight(weights, thresholds) == pytest.approx(number, abs=0.02), name
        assert gains_little(weights, thresholds) == little, name
    assert relative_weight(row(1, 1), Thresholds()) == 0
    assert relative_weight(row(3, 1), Thresholds(0.5)) == pytest.approx(0.5)
