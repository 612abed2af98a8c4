"""A second turn computes its new tokens alone, with its history in memory and on disk."""

from typing import Any

import pytest

from haversack.tools.bench import turns as bench_turns

WORK = bench_turns.Work(
    [number % 250 + 5 for number in range(2000)],
    [(number * 7 + 11) % 250 + 5 for number in range(40)],
)


def test_no_token_of_the_history_is_computed_again(tiny_model: Any, tmp_path: Any) -> None:
    with bench_turns.opened(tiny_model(), WORK, 2) as model:
        alone, second = bench_turns.turns(model, WORK, 2)
    assert [each.computed_tokens for each in (*alone, *second)] == [len(WORK.new)] * 4
    with bench_turns.opened(tiny_model(), WORK, 1, tmp_path) as model:
        found = bench_turns.turns_from_disk(model, WORK, 2)
    assert [each.computed_tokens for each in found] == [len(WORK.new)] * 2


def test_the_benchmark_prints_its_numbers_and_bounds(
    known_answer_model: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    first, *_ = bench_turns.measured(known_answer_model, rounds=1, history=100, new=40)
    assert first
    out = capsys.readouterr().out
    assert "a second turn computes 40 tokens <= 40: holds" in out
    assert "plain llama.cpp" in out and "<= 1.1" in out and "without a history" in out
    assert "more with the history on disk" in out and "to render and tokenize a chat" in out
