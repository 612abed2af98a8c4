"""The engine's rule of mixed precision gives the levels of `cache/precision.py`, to the bit."""

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from haversack.cache.precision import Thresholds, batch_levels, levels
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


@given(st.lists(st.integers(0, 20), min_size=1, max_size=40), st.floats(0, 1))
def test_a_batch(votes: list[int], low_share: float) -> None:
    given_votes, found = np.array(votes, np.int32), np.empty(len(votes), np.int32)
    native.precision_batch_levels(address_of(given_votes), len(votes), low_share, address_of(found))
    assert found.tolist() == batch_levels(given_votes, low_share).tolist()
