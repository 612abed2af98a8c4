"""Offers change nothing of how likely a token is: whatever the two models say."""

from collections import Counter
from random import Random

import numpy as np
import pytest

from haversack.devices.offers import Offer, Shares, drawn, likeliest

IDS = np.arange(6, dtype=np.int32)
NUM_DRAWS = 20_000
P = np.array([0.4, 0.25, 0.2, 0.1, 0.05, 0.0])
OFFERED = {
    "the same": P,
    "another order": P[::-1].copy(),
    "nothing in common": np.array([0.0, 0.0, 0.0, 0.0, 0.0, 1.0]),
    "one token": np.array([0.0, 1.0, 0.0, 0.0, 0.0, 0.0]),
    "all alike": np.full(6, 1 / 6),
}


def outcomes(q: Shares, random: Random) -> tuple[Counter[int], float]:
    """How often each token was chosen, and how often the offered one."""
    found, num_taken = Counter[int](), 0
    for _ in range(NUM_DRAWS):
        offer = Offer(drawn(IDS, q, random), IDS, q)
        token = offer.decided(IDS, P, random)
        found[token] += 1
        num_taken += token == offer.token
    return found, num_taken / NUM_DRAWS


@pytest.mark.parametrize("q", OFFERED.values(), ids=OFFERED)
def test_every_token_is_as_likely_as_without_offers(q: Shares) -> None:
    found, taken = outcomes(q, Random(1))
    expected = P * NUM_DRAWS
    statistic = sum((found[i] - expected[i]) ** 2 / expected[i] for i in range(5))
    assert statistic < 18.5 and not found[5]  # chi-square with 4 degrees of freedom: 0.999
    assert taken == pytest.approx(float(np.minimum(P, q).sum()), abs=0.012)


def test_the_tokens_that_samplers_left_need_not_be_the_same() -> None:
    offer = Offer(7, np.array([7, 2], np.int32), np.array([0.9, 0.1]))
    ids, shares = np.array([2, 5], np.int32), np.array([0.5, 0.5])
    found = Counter(offer.decided(ids, shares, Random(seed)) for seed in range(2000))
    assert set(found) == {2, 5}
    assert found[2] / 2000 == pytest.approx(0.4 / 0.9, abs=0.04)


def test_equal_shares_that_were_rounded_are_drawn_from() -> None:
    """An offer that is refused by a rounding error leaves nothing to draw from but the text's."""
    ids = np.array([3], np.int32)
    offer = Offer(3, ids, np.array([1.0 + 1e-9]))
    assert all(offer.decided(ids, np.array([1.0]), Random(seed)) == 3 for seed in range(50))


def test_what_has_no_weight_is_never_drawn() -> None:
    assert {drawn(IDS, P, Random(seed)) for seed in range(3000)} == {0, 1, 2, 3, 4}


def test_an_offer_holds_the_likeliest_tokens_of_a_large_vocabulary_alone() -> None:
    shares = np.arange(1.0, 5001.0)
    ids = np.arange(5000, dtype=np.int32)[::-1].copy()
    few, their_shares = likeliest(ids, shares / shares.sum())
    assert sorted(few) == list(range(1024)) and their_shares.sum() == pytest.approx(1)
    assert likeliest(IDS, P) == (IDS, P)


def test_an_offer_of_few_tokens_may_be_taken_among_many() -> None:
    """In whatever order both have them."""
    random, found = Random(2), Counter[int]()
    few, q = np.array([4, 1], np.int32), np.array([0.7, 0.3])
    for _ in range(NUM_DRAWS):
        offer = Offer(drawn(few, q, random), few, q)
        found[offer.decided(IDS[::-1].copy(), P[::-1].copy(), random)] += 1
    expected = P * NUM_DRAWS
    assert sum((found[i] - expected[i]) ** 2 / expected[i] for i in range(5)) < 18.5
