"""Routes of a text's own past: where a span stood before, and what its experts there predict."""

import pytest

from haversack.cache.policies import ExpectedUse
from haversack.cache.slots import SlotTable
from haversack.tools.routing.spans import (
    Text,
    all_at_once,
    earlier_place,
    layer_by_layer,
    main,
    replayed,
)

EXPERTS = 4


def test_the_longest_end_that_stood_before_is_found() -> None:
    tokens = [1, 2, 3, 7, 9, 2, 3, 8, 1, 2, 3]
    assert earlier_place(tokens, len(tokens), 2) == 3
    assert earlier_place(tokens, 7, 2) == 3
    assert earlier_place(tokens, 7, 3) is None


def test_experts_that_are_no_longer_in_slots_are_predicted_by_the_earlier_place() -> None:
    """Two layers, two slots each: the span's experts have gone when it comes again."""
    tokens = [1, 2, 3, 4, 5, 6, 1, 2, 3, 4]
    routes = [frozenset({token % EXPERTS, EXPERTS + token % EXPERTS}) for token in tokens]
    routes[-1] = frozenset({0, EXPERTS + 1})  # the second layer chooses another one
    table = SlotTable(range(2), EXPERTS, 4, ExpectedUse(2, EXPERTS))
    found = replayed(Text(tokens, routes, 6), table, EXPERTS, least=2)
    assert (found.tokens, found.used) == (2, 4)
    assert found.predicted <= found.missed <= found.used and found.in_vain <= 1


def test_a_short_run(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--sets", "copy", "--per-set", "1", "--tokens", "24"]) == 0
    assert capsys.readouterr().out.count("| copy |") == 3


def test_reads_that_begin_with_the_token_wait_only_for_the_drive() -> None:
    """Four layers that compute for 1 each."""
    assert layer_by_layer([0] * 4, 1.0) == all_at_once([0] * 4, 1.0, 1.0) == 4
    assert all_at_once([0, 0, 0, 3], 1.0, 1.0) == 4 < layer_by_layer([0, 0, 0, 3], 1.0)
    assert all_at_once([2] * 4, 5.0, 1.0) == 2 * 4 * 5 + 1  # the drive alone decides
    assert all_at_once([1] * 4, 0.5, 0.0) == 4 * 1.5
