"""Embeddings: the mean of what the last layer gives for each token, whatever else is computed."""

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from haversack import edge
from haversack.devices.errors import CancelledError, ContextError, PromptError
from haversack.devices.interrupts import StopFlag
from haversack.devices.llama import Row
from haversack.edge.planner import streamed

TinyModel = Callable[..., Path]
TEXT = "Once upon a time there was a fox who lived in the wood, and a hare."


@pytest.fixture(scope="module")
def model(trunk_dir: Path) -> Iterator[edge.Model]:
    options = edge.LoadOptions(cache_dir=trunk_dir)
    with edge.load(edge.builtin_model(), ram="2GiB", ctx=128, options=options) as loaded:
        yield loaded


def test_it_is_the_mean_of_hidden_rows_at_length_1(model: edge.Model) -> None:
    tokens = model.tokenize(TEXT)
    found = model.embed(TEXT)
    model._loop.engine.stop.clear()
    context = model._loop.engine.context
    context.forget(0)
    rows = list[np.ndarray]()
    for position, token in enumerate(tokens):
        context.compute_hidden([Row(token, position, 0, True)])
        rows.append(context.borrow_hidden(0).copy())
    context.forget(0)
    model._loop.sequences[0].keep(0)
    mean = np.mean(np.stack(rows).astype(np.float64), axis=0)
    assert found.dtype == np.float32 and found.shape == (model.hidden_size,)
    assert np.array_equal(found, (mean / np.linalg.norm(mean)).astype(np.float32))
    assert np.array_equal(model.embed(tokens), found)


def test_nothing_before_or_after_changes_a_bit(model: edge.Model) -> None:
    def text() -> str:
        return model.generate(TEXT, 12, temperature=0, seed=1).text

    before, alone = text(), model.embed(TEXT)
    paused = model.generate("The king", 20)
    next(paused)
    assert np.array_equal(model.embed(TEXT), alone)
    paused.close()
    assert text() == before
    model.check_integrity()


def test_streamed_experts_give_the_same_bits(tiny_model: TinyModel, trunk_dir: Path) -> None:
    planned = edge.plan(tiny_model(), ram="2GiB", ctx=64)
    vectors = list[np.ndarray]()
    for each in (planned, streamed(planned, 0.25)):
        options = edge.LoadOptions(cache_dir=trunk_dir)
        with edge.load(each, options=options) as loaded:
            vectors.append(loaded.embed(list(range(3, 33))))
    assert np.array_equal(vectors[0], vectors[1])


def test_what_cannot_be_embedded_says_why(model: edge.Model) -> None:
    with pytest.raises(ContextError, match="the context holds 128"):
        model.embed("fox " * 200)
    for nothing in ("", list[int]()):
        with pytest.raises(PromptError, match="empty"):
            model.embed(nothing)
    stop = StopFlag()
    stop.request()
    with pytest.raises(CancelledError):
        model.embed(TEXT, stop)
    assert model.embed(TEXT).any()
