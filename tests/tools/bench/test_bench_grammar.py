from pathlib import Path

import pytest

from haversack import edge
from haversack.devices.llama import ContextShape, LlamaContext
from haversack.devices.llama_model import LlamaModel
from haversack.tools.bench.grammar import CONSTRAINTS, Cost, costs, main, share


def test_every_constraint_is_timed(known_answer_model: Path) -> None:
    model = LlamaModel(known_answer_model)
    context = LlamaContext(model, ContextShape(256, 256, 1))
    for sampling in CONSTRAINTS.values():
        first, *later = costs(model, context, sampling, 8)
        assert first.decode_s == 0 < first.constrained_s
        assert later and all(min(cost) > 0 for cost in later)
    context.close()
    model.close()


def test_a_text_that_ends_early_ends_the_costs(known_answer_model: Path) -> None:
    model = LlamaModel(known_answer_model)
    context = LlamaContext(model, ContextShape(256, 256, 1))
    short = edge.Sampling(grammar='root ::= "a"')
    assert len(list(costs(model, context, short, 8))) == 1
    context.close()
    model.close()


def test_the_share_is_of_a_token_without_a_grammar() -> None:
    assert share([Cost(8, 2, 3), Cost(8, 2, 2)]) == 0.05


def test_the_program_says_whether_the_bound_holds(
    known_answer_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(known_answer_model), "--tokens", "4"]) in (0, 1)
    assert capsys.readouterr().out.count("bound 0.1: ") == len(CONSTRAINTS)
