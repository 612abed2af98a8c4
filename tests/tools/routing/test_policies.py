"""Which expert is evicted: each rule by example, and all rules on routing like a loop."""

import random
from collections.abc import Callable

import numpy as np
import pytest

from haversack.cache.policies import ExpectedUse, Keys, Policy
from haversack.cache.slots import NOWHERE, SlotTable
from haversack.tools.routing.policies import (
    Arc,
    Belady,
    LeastCostlyUsed,
    LeastStale,
    Lfu,
    Lru,
    Multidimensional,
    Weights,
)

ROWS, EXPERTS = 3, 4  # keys 0 to 3 are the first layer's, 4 to 7 the second's, 8 to 11 the third's
RULES: list[Callable[[], Policy]] = [
    lambda: Lru(ROWS, EXPERTS),
    lambda: Lfu(ROWS, EXPERTS),
    lambda: Multidimensional(ROWS, EXPERTS),
    lambda: LeastCostlyUsed(ROWS, EXPERTS),
    lambda: LeastStale(ROWS, EXPERTS),
    lambda: ExpectedUse(ROWS, EXPERTS),
    lambda: Arc(ROWS, EXPERTS, num_slots=6),
]


def keys(*numbers: int) -> Keys:
    return np.array(numbers, np.int32)


def used(policy: Policy, *passes: tuple[int, ...]) -> Policy:
    """Return `policy` after passes that used these keys, a layer at a time."""
    for one in passes:
        for row in range(ROWS):
            mine = [key for key in one if key // EXPERTS == row]
            if mine:
                policy.use(keys(*mine))
    return policy


def order(policy: Policy, *numbers: int) -> list[int]:
    """Return `numbers` in the order in which `policy` would evict them."""
    candidates = keys(*numbers)
    return candidates[policy.first_to_go(candidates, len(candidates))].tolist()


# ------------------------------------------------------------------- each rule
def test_lru_gives_up_who_was_used_longest_ago() -> None:
    assert order(used(Lru(ROWS, EXPERTS), (0, 5, 8), (1, 5, 9)), 8, 9, 5, 1, 0) == [0, 8, 1, 5, 9]


def test_lfu_gives_up_who_was_used_least_and_counts_survive_eviction() -> None:
    policy = used(Lfu(ROWS, EXPERTS), (0, 4), (0, 5), (1, 5))
    assert order(policy, 0, 1, 4, 5) == [4, 1, 0, 5]
    policy.leave(keys(0))
    assert order(policy, 0, 1) == [1, 0]


def test_hobbit_weighs_recency_frequency_and_the_layers_distance() -> None:
    def first(weights: Weights) -> int:
        policy = Multidimensional(ROWS, EXPERTS, weights)
        return order(used(policy, (0, 4, 8), (0, 4, 9), (1, 4)), 0, 1, 9)[0]

    assert first(Weights(1, 0, 0, 0)) == 0 or first(Weights(1, 0, 0, 0)) == 9  # both of pass 2
    assert first(Weights(0, 1, 0, 0)) == 1  # used once, the lowest key
    assert first(Weights(0, 0, 0, 1)) == 0  # after the second layer the first is furthest
    with pytest.raises(ValueError, match="sum to 1"):
        Weights(1, 1, 0, 0)


def test_least_costly_used_gives_up_what_is_far_and_little_used() -> None:
    policy = used(LeastCostlyUsed(ROWS, EXPERTS), (0, 4, 8), (0, 4, 8), (1, 5))
    assert order(policy, 8, 1, 4, 5) == [1, 5, 4, 8] or order(policy, 8, 1, 4, 5)[-1] == 8


def test_least_stale_gives_up_what_this_pass_did_not_use_past_layers_first() -> None:
    policy = used(LeastStale(ROWS, EXPERTS), (0, 4, 8), (1, 5))
    assert order(policy, 8, 5, 1, 4, 0) == [4, 0, 8, 5, 1]


def test_expected_use_prefers_what_is_likely_and_soon() -> None:
    policy = used(ExpectedUse(ROWS, EXPERTS), (0, 4, 8), (0, 4, 9), (0, 5))
    assert order(policy, 4, 5)[0] == 4  # used before, but not when its layer came last
    assert order(policy, 8, 9)[0] == 8
    assert order(policy, 5, 9)[0] == 5  # as likely, but its layer has just been


def test_expected_use_stays_exact_over_many_passes() -> None:
    """Uses count in a unit that grows; it is taken back before it overflows."""
    long = used(ExpectedUse(ROWS, EXPERTS), *[(0, 4)] * 6000, (0, 4, 8), (0, 5, 8), (1, 5))
    short = used(ExpectedUse(ROWS, EXPERTS), *[(0, 4)] * 300, (0, 4, 8), (0, 5, 8), (1, 5))
    assert np.isfinite(long.scores(keys(*range(12)))).all()
    assert order(long, *range(12)) == order(short, *range(12))


def test_arc_has_shares_with_the_first_layers_whole() -> None:
    assert Arc(6, 4, 22)._shares(22) == [4, 4, 4, 4, 3, 3]
    assert Arc(6, 4, 10)._shares(10) == [4, 4, 2, 0, 0, 0]


def test_arc_gives_up_from_the_layer_above_its_share_who_was_used_once() -> None:
    policy = used(Arc(ROWS, EXPERTS, num_slots=5), (0, 4, 8), (0, 5, 9))
    assert order(policy, 0, 4, 5, 8, 9)[0] == 8  # the second and third are above their shares
    policy.leave(keys(8, 9))
    assert order(policy, 0, 4, 5)[0] == 4
    policy.leave(keys(4))
    used(policy, (4,))  # a ghost of those used once is back: such get more room
    assert order(policy, 4, 5)[0] == 4


def test_belady_gives_up_who_is_used_again_last() -> None:
    uses = [keys(0, 1), keys(4), keys(1), keys(4), keys(0)]
    policy = Belady(ROWS, EXPERTS, uses)
    policy.use(uses[0])
    policy.use(uses[1])
    assert order(policy, 0, 1, 4) == [0, 4, 1]


# ------------------------------------------------------------------- all rules
@pytest.mark.parametrize("rule", RULES)
def test_each_gives_up_as_many_as_are_asked_for_and_none_twice(rule: Callable[[], Policy]) -> None:
    rng = random.Random(0)
    policy = rule()
    for moment in range(300):
        row = moment % ROWS
        policy.use(keys(*(row * EXPERTS + e for e in rng.sample(range(EXPERTS), 2))))
        candidates = keys(*rng.sample(range(ROWS * EXPERTS), 7))
        count = rng.randint(0, 7)
        chosen = policy.first_to_go(candidates, count)
        assert len(set(chosen.tolist())) == count and set(chosen.tolist()) <= set(range(7))
        policy.leave(candidates[chosen])


@pytest.mark.parametrize("rule", RULES[:-1])
def test_a_few_are_the_first_of_all(rule: Callable[[], Policy]) -> None:
    policy = used(rule(), (0, 4, 8), (1, 4, 9), (0, 5, 8))
    everyone = order(policy, *range(12))
    for count in range(13):
        assert policy.first_to_go(keys(*range(12)), count).tolist() == everyone[:count]


def test_a_loop_longer_than_the_cache_leaves_lru_without_a_hit_and_not_the_default() -> None:
    def hits(policy: Policy) -> int:
        table = SlotTable(range(ROWS), EXPERTS, 4, policy)
        found = 0
        for moment in range(60):
            experts = keys(0, 1)
            slots = table.find(moment % ROWS, experts)
            found += int((slots != NOWHERE).sum())
            table.use(moment % ROWS, experts)
            missing = experts[slots == NOWHERE]
            table.pin(slots[slots != NOWHERE])
            claimed = table.claim(moment % ROWS, missing)
            table.fill(claimed)
            table.unpin(claimed)
            table.unpin(slots[slots != NOWHERE])
        return found

    assert hits(Lru(ROWS, EXPERTS)) == 0
    assert hits(ExpectedUse(ROWS, EXPERTS)) > 30
