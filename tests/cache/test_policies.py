"""Who goes when another expert needs room."""

import random

import numpy as np
import numpy.typing as npt

from haversack.cache.policies import Lru, Slots


def slots(*numbers: int) -> Slots:
    return np.array(numbers, np.int32)


def usable(*flags: int) -> npt.NDArray[np.bool_]:
    return np.array(flags, bool)


ALL = usable(1, 1, 1, 1)


def test_the_slot_used_longest_ago_goes_first() -> None:
    lru = Lru(4)
    for slot in (2, 0, 3, 1):
        lru.touch(slots(slot))
    assert lru.choose(ALL, 4).tolist() == [2, 0, 3, 1]
    lru.touch(slots(2))
    assert lru.choose(ALL, 2).tolist() == [0, 3]


def test_slots_never_used_or_forgotten_go_before_all() -> None:
    lru = Lru(4)
    lru.touch(slots(0))
    lru.touch(slots(3))
    assert lru.choose(ALL, 3).tolist() == [1, 2, 0]
    lru.forget(slots(3))
    assert lru.choose(ALL, 4).tolist() == [1, 2, 3, 0]


def test_slots_touched_together_are_equally_old_and_go_in_order() -> None:
    lru = Lru(4)
    lru.touch(slots(3, 1))
    lru.touch(slots(2, 0))
    assert lru.choose(ALL, 4).tolist() == [1, 3, 0, 2]


def test_only_usable_slots_are_chosen_and_no_more_than_there_are() -> None:
    lru = Lru(4)
    lru.touch(slots(1))
    assert lru.choose(usable(0, 1, 0, 1), 2).tolist() == [3, 1]
    assert lru.choose(usable(0, 1, 0, 1), 4).tolist() == [3, 1]
    assert lru.choose(ALL, 0).tolist() == []


def test_the_order_is_that_of_a_list() -> None:
    """Against the plainest model there is: a list of (time of the last use, slot), sorted."""
    rng = random.Random(0)
    lru, last_use = Lru(16), [0] * 16
    for moment in range(1, 2000):
        some = rng.sample(range(16), rng.randint(1, 4))
        used = moment if rng.random() < 0.8 else 0
        lru.touch(slots(*some)) if used else lru.forget(slots(*some))
        for slot in some:
            last_use[slot] = used
        flags = [rng.random() < 0.7 for _ in range(16)]
        count = rng.randint(0, 16)
        expected = sorted((last_use[slot], slot) for slot in range(16) if flags[slot])[:count]
        chosen = lru.choose(np.array(flags, bool), count)
        assert chosen.dtype == np.int32
        assert chosen.tolist() == [slot for _, slot in expected]
