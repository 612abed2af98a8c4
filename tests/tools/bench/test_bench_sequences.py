"""Texts written together are those written alone; the benchmark says so, and how fast they came."""

from typing import Any

import pytest

from haversack import edge
from haversack.tools.bench import sequences as bench_sequences
from haversack.tools.bench.sequences import OPENINGS


@pytest.mark.slow
def test_both_ways_write_the_same_texts(
    tiny_model: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    planned = edge.plan(tiny_model(), ram="1GiB", ctx=64, sequences=len(OPENINGS))
    with edge.load(planned) as model:
        apart = bench_sequences.write_apart(model, 8)
        together = bench_sequences.write_together(model, 8)
        assert apart.texts == together.texts and len(set(apart.texts)) == len(OPENINGS)
        assert apart.lengths == together.lengths == [8] * len(OPENINGS)
        assert min(apart.tok_s, together.tok_s) > 0
        assert bench_sequences.holds("tiny", model, 4, rounds=1, bound=0.0)
    lines = capsys.readouterr().out.splitlines()
    lengths, *verdicts = lines
    assert lengths == "tiny: texts of 4, 4, 4, 4 tokens"
    assert len(verdicts) == 2 and all(line.endswith("holds") for line in verdicts)


def test_prompts_are_texts_where_the_model_has_a_vocabulary() -> None:
    with edge.load(edge.builtin_model(), ram="1GiB", ctx=64) as model:
        assert bench_sequences.prompts(model) == list(OPENINGS)
        assert min(bench_sequences.write_apart(model, 8).lengths) == 8
