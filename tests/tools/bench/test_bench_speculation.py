"""The benchmark of speculation: its prompts, its bounds, and a short run."""

import gzip
import json
from pathlib import Path

import pytest

from haversack import edge
from haversack.edge.speculate import PassCount
from haversack.tools.bench.speculation import (
    AGAIN,
    AUTO,
    OFF,
    OWN_PROMPTS,
    TIMED,
    Run,
    fitting,
    holds,
    main,
    mean_times_s,
    opened,
    read_prompts,
    read_sets,
    row_of,
    summary,
)

NONE_S = [0.0] * 4  # passes of more rows
TWIN = Path(__file__).parents[2] / "data" / "models" / "tales-twin.gguf"


def runs(**tok_s: float) -> dict[str, Run]:
    """Runs of all settings; those that are not named reach one token a second."""
    return {
        name: Run(["text"], tok_s.get(f"n{name}" if name.isdigit() else name, 1.0), 0.5)
        for name in TIMED
    }


def test_prompts_are_read_by_their_sets(tmp_path: Path) -> None:
    records = [
        {"category": "a", "turns": ["one", "two"]},
        {"category": "a", "turns": ["three"]},
        {"category": "b", "prompt": "four"},
        {"question": "five"},
    ]
    plain, packed = tmp_path / "set.jsonl", tmp_path / "set.jsonl.gz"
    text = "\n".join(map(json.dumps, records))
    plain.write_text(text)
    packed.write_bytes(gzip.compress(text.encode()))
    expected = {"set a": ["one"], "set b": ["four"], "set": ["five"]}
    assert read_prompts(plain, 1) == read_prompts(packed, 1) == expected
    assert read_sets([tmp_path], 1, ["b", "c"]) == {"set b": ["four"]}
    assert read_prompts(plain, 3, is_quick=True) == {"set": ["one", "four", "five"]}
    assert read_sets([], 1, []) == OWN_PROMPTS
    with pytest.raises(edge.PromptError, match="there are set a, set b, set"):
        read_sets([plain], 1, ["c"])
    plain.write_text('{"answer": 1}')
    with pytest.raises(edge.PromptError, match="has no"):
        read_prompts(plain, 1)


@pytest.mark.parametrize(
    ("tok_s", "expected"),
    [
        ({}, [True, True]),
        ({AUTO: 0.96}, [False, True]),
        ({AUTO: 0.98, "n2": 1.05}, [True, False]),
        ({AUTO: 1.15, "n2": 1.2}, [True, True, True]),
        ({AUTO: 1.09, OFF: 1.0, "n2": 1.2}, [True, False, False]),
    ],
)
def test_bounds(tok_s: dict[str, float], expected: list[bool]) -> None:
    assert list(holds("a set", runs(**tok_s))) == expected
    row = row_of("a set", runs(), runs(**tok_s), [0, 2.0, 0, 5.0, *NONE_S])
    assert (row["auto clock"], row["T(2)"], row["T(3)"]) == ("1.000", "", "2.50")


def test_a_short_run_prints_a_row_for_each_set(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The text is the same with each setting, or it would end with an error."""
    prompts = tmp_path / "tales.jsonl"
    prompts.write_text('{"prompt": "The fox and the hen"}\n')
    found = tmp_path / "found.csv"
    arguments = ["--tokens", "8", "--rounds", "1", "--prompts", prompts, "--csv", found]
    drafters = ["--drafter", "ngram", "--drafter", TWIN]
    assert main([str(each) for each in [*arguments, *drafters, "--share", "0.5"]]) in (0, 1)
    shown = capsys.readouterr().out
    assert "50% in slots, ngram: tales" in shown and "tales-twin.gguf: tales" in shown
    assert "2 cells; by the clock auto is" in shown
    assert len(found.read_text().splitlines()) == 3


def test_prompts_without_room_for_tokens_are_left_out() -> None:
    with opened(edge.builtin_model(), None, "ngram") as model:
        texts = ["A fox", "A fox and a hen. " * 1000]
        assert fitting(model, texts, 8) == texts[:1] and fitting(model, texts, 4096) == []


def test_cells_that_gain_are_named() -> None:
    cells = {"none": {}, "some": {AUTO: 1.2, "n3": 1.3}}
    rows = [row_of(name, runs(), runs(**tok_s), [0] * 8) for name, tok_s in cells.items()]
    assert summary(rows) == (
        "2 cells; by the clock auto is 1.000 (1.00 to 1.00) of off, and off again 1.000 (1.00 to"
        " 1.00); a fixed length reaches 1.15 of off in 1\n  some: auto 1.200"
    )


def test_passes_of_as_many_rows_take_the_same_in_all_settings() -> None:
    """Ten tokens in ten passes of 1 s, or in five of two rows that take 1.5 s: whatever the clock
    said while each was computed."""
    none = [PassCount()] * 5
    plain = [PassCount(), PassCount(10, 12.0), PassCount(), *none]  # the machine was slow
    other = [PassCount(), PassCount(10, 8.0), PassCount(), *none]
    pairs = [PassCount(), PassCount(), PassCount(5, 7.5), *none]
    found = {
        OFF: [Run([], 10 / 12, 0.0, 10, plain)],
        AGAIN: [Run([], 10 / 8, 0.0, 10, other)],
        "1": [Run([], 10 / 8.5, 1.0, 10, pairs)],  # a second beside the passes
    }
    times_s = mean_times_s(found)
    assert times_s == [0, 1.0, 1.5, 0, 0, 0, 0, 0]
    assert {name: run.at(times_s).tok_s for name, (run,) in found.items()} == pytest.approx(
        {OFF: 1.0, AGAIN: 1.0, "1": 10 / 8.5}
    )
