"""The engine's rule of mixed precision: of rows it gives the levels of `cache/precision.py` to the
bit, of a batch those of the rule here."""

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from haversack.cache.precision import HIGH, LOW, Levels, Thresholds, levels
from haversack.devices._native import address_of
from haversack.offload import _native as native

WEIGHTS = st.floats(0, 4, width=32) | st.sampled_from([0.25, 0.5, 1.0, np.inf, np.nan, -1.0])


def native_levels(weights: npt.NDArray[np.float32], rule: Thresholds) -> list[int]:
    found = np.empty(len(weights), np.int32)
    native.precision_row_levels(
        address_of(weights), len(weights), rule.low, rule.skip, address_of(found)
    )
    return found.tolist()


@given(st.lists(WEIGHTS, min_size=1, max_size=10), st.tuples(st.floats(0, 1), st.floats(0, 1)))
def test_a_row(weights: list[float], bounds: tuple[float, float]) -> None:
    rule, row = Thresholds(*sorted(bounds)), np.array(weights, np.float32)
    with np.errstate(invalid="ignore"):
        assert native_levels(row, rule) == levels(row[None], rule)[0].tolist()


@pytest.mark.parametrize("sharpness", [1, 4])
def test_thousands_of_rows_of_a_router(sharpness: int) -> None:
    """Also thresholds that are a score of the row itself."""
    rng = np.random.default_rng(sharpness)
    for _ in range(2000):
        row = np.exp(sharpness * rng.standard_normal(8)).astype(np.float32)
        row /= row.sum()
        score = float(np.float32(np.sort(row)[::-1].cumsum()[2]) / row.sum())
        rule = Thresholds(score, (1 + score) / 2)
        assert native_levels(row, rule) == levels(row[None], rule)[0].tolist()


# --------------------------------------------------------------------- a batch
def batch_levels(votes: list[int], low_share: float) -> list[int]:
    """The level of each expert of a batch, by how many rows chose it, as the engine says."""
    counts, found = np.array(votes, np.int32), np.empty(len(votes), np.int32)
    native.precision_batch_levels(address_of(counts), len(votes), low_share, address_of(found))
    return found.tolist()


def expected_levels(votes: npt.NDArray[np.integer], low_share: float) -> Levels:
    """HIGH, and LOW for the experts with the fewest votes, which together have at most `low_share`
    of all votes (Fate, arXiv 2502.12224). Of equal votes the higher expert goes LOW first. Nothing
    is skipped, because in a batch some row would miss much."""
    most = int(low_share * int(votes.sum()))
    order = np.lexsort((-np.arange(len(votes)), votes))
    found = np.full(len(votes), HIGH, np.int32)
    found[order[np.cumsum(votes[order]) <= most]] = LOW
    return found


@given(st.lists(st.integers(0, 20), min_size=1, max_size=40), st.floats(0, 1))
def test_a_batch(votes: list[int], low_share: float) -> None:
    assert batch_levels(votes, low_share) == expected_levels(np.array(votes), low_share).tolist()


def test_the_least_voted_of_a_batch_go_low() -> None:
    votes = [5, 1, 0, 2, 2]
    assert batch_levels(votes, 0.0) == [HIGH, HIGH, LOW, HIGH, HIGH]  # no row chose it
    assert batch_levels(votes, 0.3) == [HIGH, LOW, LOW, HIGH, LOW]
    assert batch_levels(votes, 1.0) == [LOW] * 5


@settings(max_examples=50)
@given(st.lists(st.integers(0, 30), min_size=1, max_size=20), st.floats(0, 1))
def test_a_batch_keeps_its_share(votes: list[int], share: float) -> None:
    wanted = batch_levels(votes, share)
    low = [count for count, level in zip(votes, wanted, strict=True) if level == LOW]
    high = [count for count, level in zip(votes, wanted, strict=True) if level == HIGH]
    assert sum(low) <= share * sum(votes)
    assert not low or not high or max(low) <= min(high)
    assert not high or sum(low) + min(high) > share * sum(votes) - 1
