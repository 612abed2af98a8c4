"""A second turn computes its new tokens alone, with its history in memory and on disk."""

from typing import Any

import pytest

from haversack.tools.bench import turns as bench_turns

HISTORY, NEW = 2000, 40


def test_no_token_of_the_history_is_computed_again(tiny_model: Any, tmp_path: Any) -> None:
    tokens = [number % 250 + 5 for number in range(HISTORY)]
    new = [(number * 7 + 11) % 250 + 5 for number in range(NEW)]
    with bench_turns.opened(tiny_model(), HISTORY + NEW + 8) as model:
        alone, second = bench_turns.turns(model, tokens, new)
    assert (alone.computed_tokens, second.computed_tokens) == (NEW, NEW)
    with bench_turns.opened(tiny_model(), HISTORY + NEW + 8, tmp_path) as model:
        found = bench_turns.turns_from_disk(model, tokens, new, rounds=2)
        assert [each.computed_tokens for each in found] == [NEW, NEW]


def test_the_benchmark_prints_its_numbers_and_bounds(
    tiny_model: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    first, *_ = bench_turns.measured(tiny_model(), rounds=1, history=100, new=40)
    assert first
    out = capsys.readouterr().out
    assert "a second turn computes 40 tokens <= 40: holds" in out
    assert "<= 1.1" in out and "more with the history on disk" in out
