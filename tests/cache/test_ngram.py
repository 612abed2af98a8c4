"""Drafts without a model: matches against a naive search, and how their rates are learnt."""

from collections.abc import Sequence
from itertools import accumulate
from operator import mul

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from haversack.cache.ngram import NgramDrafter, NgramMemory, text_bytes
from haversack.devices._native import own

MOST = 6
CTX = 64
REPEATED = [*range(10, 30), 3, *range(10, 30)]


def drafter_of(memory: NgramMemory | None = None, ctx: int = CTX, given: int = 0) -> NgramDrafter:
    return NgramDrafter(memory or NgramMemory(), ctx, given, MOST)


def longest_repeat(text: Sequence[int]) -> int:
    """How long an end of `text` also ends earlier."""
    for length in range(len(text) - 1, 0, -1):
        end = list(text[-length:])
        if any(list(text[at : at + length]) == end for at in range(len(text) - length)):
            return length
    return 0


def ends_earlier(text: Sequence[int], length: int, draft: Sequence[int]) -> bool:
    """Whether the last `length` tokens stand earlier in `text` too, with `draft` behind them."""
    end = [*text[-length:], *draft]
    line = [*text, *draft]
    return any(line[at : at + len(end)] == end for at in range(len(text) - length))


texts = st.lists(st.integers(0, 3), min_size=1, max_size=CTX)


@given(texts)
def test_the_match_is_the_longest(text: list[int]) -> None:
    drafter = drafter_of()
    for num_tokens in range(1, len(text) + 1):
        drafter.propose(text[:num_tokens], 0)
        assert drafter.match_length == longest_repeat(text[:num_tokens])
    drafter.close()


@given(texts)
def test_a_draft_followed_the_match(text: list[int]) -> None:
    """A table that knows nothing proposes nothing, as when all of the text was given."""
    drafter = drafter_of(given=len(text))
    draft = drafter.propose(text, MOST)
    assert len(draft.tokens) == (MOST if drafter.match_length else 0)
    assert not drafter.match_length or ends_earlier(text, drafter.match_length, draft.tokens)
    drafter.close()


@given(texts, st.lists(st.floats(0, MOST), min_size=1, max_size=MOST))
def test_a_watch_stops_where_the_chances_add_up_to_what_is_needed(
    text: list[int], needs: list[float]
) -> None:
    watching, looking = drafter_of(), drafter_of()
    watching.propose(text[:1], 0)
    watch = watching.watch(needs)
    stops = own.Stops(watch.stops)
    for num_tokens in range(2, len(text) + 1):
        chances = accumulate(looking.propose(text[:num_tokens], MOST).rates, mul)
        is_due = any(a >= b for a, b in zip(accumulate(chances), needs, strict=False))
        assert stops(watch.data, text[num_tokens - 1]) == is_due
        assert watching.has_read(text[:num_tokens])
    assert watching.propose(text, MOST) == looking.propose(text, MOST)
    watching.close()
    looking.close()


@given(texts, st.integers(2, 16))
@settings(max_examples=50)
def test_a_text_that_is_too_long_loses_its_older_part(text: list[int], most: int) -> None:
    drafter = drafter_of(ctx=most)
    drafter.propose(text, 0)
    shortest = longest_repeat(text[-(most - most // 2) :])
    assert shortest <= drafter.match_length <= longest_repeat(text[-most:])
    drafter.close()


def test_the_latest_place_decides() -> None:
    drafter = drafter_of(given=11)
    assert drafter.propose([1, 2, 3, 9, 1, 2, 4, 9, 1, 2], 1).tokens == [4]
    drafter.close()


def test_a_text_that_repeats_itself_goes_on_so() -> None:
    drafter = drafter_of(given=6)
    assert drafter.propose([1, 2, 3, 1, 2, 3], MOST).tokens == [1, 2, 3, 1, 2, 3]
    drafter.close()


def test_the_table_knows_other_texts() -> None:
    memory = NgramMemory()
    first = drafter_of(memory)
    first.propose([5, 6, 7, 8, 9], 0)
    second = drafter_of(memory, given=1)
    assert second.propose([6], 3).tokens == [7, 8, 9]
    longer = drafter_of(memory, given=2)
    assert longer.propose([40, 7], MOST).tokens == [8, 9]
    for drafter in (first, second, longer):
        drafter.close()


def test_the_longer_context_decides_in_the_table() -> None:
    memory = NgramMemory()
    for text in ([1, 2, 3, 4, 50], [9, 4, 60], [8, 4, 60]):
        drafter_of(memory).propose(text, 0)
    assert drafter_of(memory, given=4).propose([1, 2, 3, 4], 1).tokens == [50]
    assert drafter_of(memory, given=2).propose([7, 4], 1).tokens == [60]


def test_a_prompt_teaches_nothing() -> None:
    memory = NgramMemory()
    rates = memory.rates.copy()
    drafter_of(memory, given=len(REPEATED)).propose(REPEATED, 0)
    assert (memory.rates == rates).all() and not memory.table.any()


@pytest.mark.parametrize(("next_token", "grows"), [(11, True), (99, False)])
def test_rates_follow_what_came_true(next_token: int, grows: bool) -> None:
    memory = NgramMemory()
    first = memory.rates[:, 0].copy()
    drafter_of(memory, given=22).propose([*REPEATED[:22], next_token], 0)
    (changed,) = np.flatnonzero(memory.rates[:, 0] != first)
    assert (memory.rates[changed, 0] > first[changed]) == grows


def test_the_first_outcomes_of_a_kind_count_most() -> None:
    """Eight right tokens behind matches of two or three tokens, of which half were expected."""
    memory = NgramMemory()
    text = [token for number in range(10, 18) for token in (7, 8, number, 7, 8, number)]
    drafter_of(memory, given=2).propose(text, 0)
    assert memory.rates[1, 0] > 0.5 > NgramMemory().rates[1, 0]


def test_the_rate_of_a_longer_match_counts_for_later_tokens() -> None:
    rates = drafter_of(given=CTX).propose([*REPEATED[:22], 11, 12], MOST).rates
    assert list(rates) == sorted(rates) and rates[0] < rates[-1]


def after(memory: NgramMemory, token: int) -> list[int]:
    """What the table knows to follow `token`."""
    return list(drafter_of(memory, given=1).propose([token], 1).tokens)


def test_what_came_true_stays_longest_in_a_full_table() -> None:
    memory = NgramMemory(32)  # a single set of four entries
    frequent = [1, 2, 3, 4]
    for token in frequent * 3:
        drafter_of(memory).propose([token, token], 0)
    drafter_of(memory).propose([50, 51], 0)
    assert [after(memory, token) for token in frequent] == [[1], [2], [3], [4]]
    for _ in range(3):
        drafter_of(memory).propose([50, 51], 0)
    assert after(memory, 50) == [51]
    assert sum(after(memory, token) == [token] for token in frequent) == 3


def test_a_table_is_used_again() -> None:
    memory = NgramMemory()
    drafter_of(memory).propose([5, 6], 0)
    again = NgramMemory()
    again.table[:] = memory.table
    assert after(again, 5) == [6]
    again.clear()
    assert after(again, 5) == [] and (again.rates == NgramMemory().rates).all()


def test_the_memory_of_a_text_is_known() -> None:
    assert text_bytes(100_000) < 120 * 100_000
    assert text_bytes(1 << 30) == text_bytes(1 << 17)
