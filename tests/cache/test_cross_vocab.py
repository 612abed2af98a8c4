"""What draft tokens stand for: tokens with the same text, and runs that were learnt."""

import tracemalloc

import numpy as np
import pytest

from haversack.cache.cross_vocab import (
    MOST_RUN,
    Pair,
    PairStore,
    aligned,
    same_texts,
    translated,
)
from haversack.cache.ngram import Draft

TARGET = [b"a", b"b", b" fox", b"hen", b"", b"x y"]
DRAFT = [b" f", b"ox", b"a", b"", b"hen", b"ab"]
SAME = same_texts(DRAFT, TARGET)


def test_tokens_with_the_same_text_stand_for_each_other() -> None:
    assert SAME.tolist() == [-1, -1, 0, -1, 3, -1]


def test_the_smallest_runs_with_the_same_text_are_found() -> None:
    draft, target = [b" f", b"ox", b"a", b"bc", b"d"], [b" fox", b"ab", b"c", b"d", b"e"]
    found = [(draft[one], target[other]) for one, other in aligned(draft, target)]
    assert found == [
        ([b" f", b"ox"], [b" fox"]),
        ([b"a", b"bc"], [b"ab", b"c"]),
        ([b"d"], [b"d"]),
    ]


def test_a_run_stands_for_what_was_learnt() -> None:
    pairs = PairStore()
    draft = Draft([2, 0, 1, 4, 5], [0.9, 0.8, 0.5, 0.7, 0.6])
    assert translated(draft, SAME, None) == (Draft([0], [0.9]), 4)
    pairs.learn(Pair((0, 1), (2,)))
    assert translated(draft, SAME, pairs) == (Draft([0, 2, 3], [0.9, 0.4, 0.7]), 1)
    pairs.learn(Pair((5,), (0, 1)))
    found, num_unknown = translated(draft, SAME, pairs)
    assert (found.tokens, num_unknown) == ([0, 2, 3, 0, 1], 0)
    assert found.rates[3] == 0.6 and found.rates[4] > 0.9


@pytest.mark.parametrize(("second", "expected"), [(0.6, [2]), (0.3, [0, 3])])
def test_the_likelier_of_a_run_and_its_first_token_alone_is_taken(
    second: float, expected: list[int]
) -> None:
    """The token alone has what the run leaves of its chance."""
    pairs = PairStore()
    pairs.learn(Pair((2, 4), (2,)))
    found, _ = translated(Draft([2, 4], [0.8, second]), SAME, pairs)
    assert found.tokens == expected
    assert found.rates[0] == pytest.approx(max(0.8 * second, 0.8 - 0.8 * second))


def test_the_pair_that_was_not_used_for_longest_makes_room() -> None:
    pairs = PairStore(most_bytes=640)
    for number in range(2):
        pairs.learn(Pair((number, 9), (number,)))
    assert pairs.find([0, 9, 5]) == Pair((0, 9), (0,))
    pairs.learn(Pair((2, 9), (2,)))
    assert len(pairs) == 2 and pairs.find([1, 9]) is None and pairs.find([0, 9]) is not None


def test_pairs_are_kept_as_bytes() -> None:
    pairs, read = PairStore(), PairStore()
    for pair in (Pair((0, 1), (2,)), Pair((5,), (0, 1))):
        pairs.learn(pair)
    read.read(pairs.to_bytes(), len(DRAFT), len(TARGET))
    assert read.to_bytes() == pairs.to_bytes()


@pytest.mark.parametrize("numbers", [[2], [2, 1, 0], [9, 1, 0], [1, 1, 6, 0], [1, 1, 0, 6], [0, 1]])
def test_bytes_of_something_else_are_refused(numbers: list[int]) -> None:
    with pytest.raises(ValueError, match="its pairs have wrong"):
        PairStore().read(np.array(numbers, "<i4").tobytes(), 6, 6)


def test_a_store_that_is_full_takes_what_it_may() -> None:
    """Pairs of the longest runs, more than there is room for."""
    most_bytes = 1 << 20
    pairs = PairStore(most_bytes)
    tracemalloc.start()
    for number in range(5000):
        run = tuple(range(1000 + number, 1000 + number + MOST_RUN))
        pairs.learn(Pair(run, run))
    taken_bytes, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(pairs) < 5000 and 0.6 * most_bytes < taken_bytes <= most_bytes
