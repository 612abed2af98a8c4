"""The replay of the gate: texts cost what the machine's curve says, and the gate drafts by it."""

import argparse
from pathlib import Path

import pytest

from haversack.tools.bench.gate_replay import (
    CHANGED_S,
    MACHINES,
    Machine,
    Replay,
    Text,
    main,
    replayed,
    straight,
    times_of,
)

REPEATED = [*range(10, 30)] * 12
ONCE = [*range(10, 250)]


def text_of(tokens: list[int], reads: float = 0.0) -> Text:
    return Text(tokens, 20, [reads] * (len(tokens) - 21))


def test_without_drafts_a_text_takes_a_pass_a_token() -> None:
    replay = Replay(Machine("even", straight(0.2), 0.5), "off", 0.0, noise=0.0)
    assert replay.round_s([text_of(ONCE, reads=2.0)]) == pytest.approx(2.0 * len(ONCE[21:]))


def test_rows_that_are_wrong_read_experts_in_vain() -> None:
    """Of a text that repeats itself no draft is wrong once it was seen twice."""
    machine = Machine("reads alone", [1.0] * 7, 1.0)
    right = Replay(machine, "6", 3.0, noise=0.0)
    num_passes = -(-len(REPEATED[21:]) // 7)
    found_s = right.round_s([text_of(REPEATED, reads=2.0)])
    least_s = 2.0 * len(REPEATED[21:]) + num_passes
    assert least_s <= found_s <= least_s + 6 * (1 + 3.0) + 20 * CHANGED_S


@pytest.mark.parametrize(
    ("row_cost", "tokens", "least", "most"),
    [(0.1, REPEATED, 2.0, 4.4), (0.1, ONCE, 0.97, 1.01), (1.3, REPEATED, 0.97, 1.01)],
)
def test_the_gate_drafts_where_it_pays(
    row_cost: float, tokens: list[int], least: float, most: float
) -> None:
    options = argparse.Namespace(noise=0.05, rounds=3)
    found = replayed(Machine("thought of", straight(row_cost)), [text_of(tokens)], 0.0, options)
    assert least <= found["auto"] / found["off"] <= most


def test_a_short_run_prints_a_row_for_each_machine(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prompts = tmp_path / "tales.jsonl"
    prompts.write_text('{"prompt": "The fox and the hen"}\n')
    arguments = ["--prompts", str(prompts), "--tokens", "12", "--rounds", "1"]
    arguments += ["--times", "2,3,4,5,6,7,8", "--read", "0.1"]
    assert main(arguments) in (0, 1)
    shown = capsys.readouterr().out
    assert "tales: a token reads" in shown
    assert shown.count("| tales |") == len(MACHINES) + 1 == shown.count("auto / best")


def test_times_are_told_in_passes_of_one_row() -> None:
    assert times_of("2,3,4,5,6,7,8") == [1, 1.5, 2, 2.5, 3, 3.5, 4]
    for text in ("1,2", "1,2,3,4,5,6,x", "1,2,3,4,5,6,0"):
        with pytest.raises(argparse.ArgumentTypeError, match="give 7"):
            times_of(text)
