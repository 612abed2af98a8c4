"""The benchmark of rows runs whole on a small model; a cost is in single tokens."""

from typing import Any

import pytest

from haversack import edge
from haversack.edge.plain_llama import PlainLlama
from haversack.tools.bench import rows as bench_rows
from haversack.tools.bench.rows import NUM_ROWS, Passes, RowsResult


def test_the_ratio_is_that_of_both_costs() -> None:
    assert RowsResult(4, True, cost=4.0, plain_cost=3.2).ratio == 1.25


def test_equal_rows_repeat_a_token_and_distinct_ones_are_drawn() -> None:
    passes = Passes.drawn(1000, 5)
    assert len(passes.singles) == 5 and len(passes.several) == 2 * len(NUM_ROWS)
    for (num_rows, distinct), drawn in passes.several.items():
        assert [len(tokens) for tokens in drawn] == [num_rows] * 5
        assert all((len(set(tokens)) > 1) == distinct for tokens in drawn)


@pytest.mark.slow
def test_every_kind_of_pass_has_a_cost(tiny_model: Any) -> None:
    planned = edge.plan(tiny_model(), ram="1GiB", ctx=64)
    with PlainLlama(planned.path, 64, planned.shape.threads) as plain:
        results = bench_rows.measure(plain, planned, rounds=2, passes=2)
    kinds = {(result.num_rows, result.distinct) for result in results}
    assert kinds == {(number, distinct) for number in NUM_ROWS for distinct in (True, False)}
    assert all(result.cost > 0 and result.plain_cost > 0 for result in results)
