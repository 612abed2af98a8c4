"""Passes that follow each other without Python give what passes one by one give, to the bit."""

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from haversack import edge
from haversack.devices import _native as native
from haversack.devices._native import own
from haversack.devices.errors import HaversackError
from haversack.devices.llama import ContextShape, LlamaContext, Row
from haversack.devices.llama_model import LlamaModel
from haversack.devices.steps import MOST_STEPS, Ahead, Watch
from haversack.tools.models.synth import TinyShape

SMALL = TinyShape(num_hidden_layers=2, num_experts=4, vocab_size=64)
SHAPE = ContextShape(ctx_tokens=64, batch_tokens=16, threads=1)
HOURS_S = 1e4  # so that the clock ends none
TOKENS = [5, 6, 7, 8, 9]


class Failing:
    """An owner whose passes fail, but for the first `num_good` ones."""

    address: int | None = None
    goes_on = True

    def __init__(self, num_good: int) -> None:
        self.num_left = num_good
        self._end = own.PassEnd(self._fails)
        self.pass_end = native.address_of_function(self._end), None

    def _fails(self, _: int | None, __: bool) -> int:
        self.num_left -= 1
        return int(self.num_left < 0)

    def after_pass(self, failure: int) -> BaseException | None:
        return HaversackError(f"failure {failure}") if failure else None


@pytest.fixture
def model(tiny_model: Callable[..., Path]) -> Iterator[LlamaModel]:
    loaded = LlamaModel(tiny_model("qwen3moe", shape=SMALL))
    yield loaded
    loaded.close()


@pytest.fixture
def context(model: LlamaModel) -> Iterator[LlamaContext]:
    made = LlamaContext(model, SHAPE)
    yield made
    made.close()


def row(token: int, position: int) -> Row:
    return Row(token, position, 0, True)


def one_by_one(context: LlamaContext, tokens: list[int]) -> list[np.ndarray]:
    found = list[np.ndarray]()
    for token in tokens:
        context.decode([token])
        found.append(context.logits())
    context.forget(0)
    return found


def test_given_tokens_have_the_logits_of_passes_one_by_one(context: LlamaContext) -> None:
    expected = one_by_one(context, TOKENS)
    context.go_on(row(TOKENS[0], 0), Ahead(MOST_STEPS, TOKENS, HOURS_S))
    steps = context.steps
    assert (steps.num_done, context.num_tokens()) == (5, 5)
    assert all((one == other).all() for one, other in zip(steps.logits, expected, strict=True))
    assert steps.passes_s > 0


def test_a_watch_leaves_the_pass_of_a_token_to_the_caller(context: LlamaContext) -> None:
    told = list[int]()

    @own.Stops
    def stops(_: int | None, token: int) -> bool:
        told.append(token)
        return len(told) == 3

    watch = Watch(native.address_of_function(stops), 0)
    context.go_on(row(5, 0), Ahead(MOST_STEPS, most_s=HOURS_S, watch=watch))
    assert told == context.steps.likeliest and context.num_tokens() == 3
    context.go_on(row(told[-1], 3), Ahead(4, most_s=HOURS_S))
    assert len(told) == 3 and context.num_tokens() == 7  # that watch is gone


def test_the_likeliest_token_follows_each(context: LlamaContext) -> None:
    chosen = [5]
    for position in range(6):
        context.compute([row(chosen[-1], position)])
        chosen.append(int(context.logits().argmax()))
    context.forget(0)
    context.go_on(row(5, 0), Ahead(6, most_s=HOURS_S))
    assert context.steps.likeliest == chosen[1:]
    assert context.num_tokens() == 6  # the last one was chosen and not computed


def test_no_pass_begins_late(context: LlamaContext) -> None:
    context.go_on(row(TOKENS[0], 0), Ahead(MOST_STEPS, TOKENS, most_s=0))
    assert context.steps.num_done == 1


def test_a_text_ends() -> None:
    """The likeliest tokens of some text end it: of which, depends on the processor's rounding."""
    model = LlamaModel(edge.builtin_model())
    context = LlamaContext(model, ContextShape(ctx_tokens=512, batch_tokens=64, threads=1))
    for animal in ("cat", "hen", "fox", "king", "girl", "dog"):
        text = f"Once upon a time, there was a {animal}. The end"
        *prompt, token = model.vocabulary.tokenize(text)
        context.forget(0)
        context.decode(prompt)
        chosen = [token]
        while not model.vocabulary.ends(chosen[-1]) and context.num_tokens() < 512 - MOST_STEPS:
            context.go_on(row(chosen[-1], context.num_tokens()), Ahead(MOST_STEPS))
            chosen += context.steps.likeliest
        assert not any(map(model.vocabulary.ends, chosen[:-1]))
        assert context.num_tokens() == len(prompt) + len(chosen) - 1
        if model.vocabulary.ends(chosen[-1]):
            break
    assert model.vocabulary.ends(chosen[-1])
    context.close()
    model.close()


@pytest.mark.parametrize("num_good", [0, 1, 3])
def test_what_was_computed_before_a_failure_stands(num_good: int, model: LlamaModel) -> None:
    owner = Failing(num_good)
    context = LlamaContext(model, SHAPE, owner)
    with pytest.raises(HaversackError, match="failure 1"):
        context.go_on(row(TOKENS[0], 0), Ahead(MOST_STEPS, TOKENS, HOURS_S))
    steps = context.steps
    assert (steps.num_done, context.num_tokens(), len(steps.logits)) == (num_good,) * 3
    owner.num_left = 100
    context.compute([row(TOKENS[num_good], num_good)])  # the next call is not concerned
    again = context.logits()
    context.forget(0)
    assert (again == one_by_one(context, TOKENS)[num_good]).all()
    context.close()
