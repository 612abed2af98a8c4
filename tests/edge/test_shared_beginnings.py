"""A text that begins as that of another sequence does takes what that holds, with the same bits."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from haversack import edge
from haversack.edge.cache_dir import kv_folder
from haversack.edge.kv_disk import list_texts
from haversack.edge.planner import streamed
from haversack.tools.models.architectures import TinyShape

TinyModel = Callable[..., Path]
SHAPE = TinyShape(num_hidden_layers=2, num_experts=8, vocab_size=64)
BATCH = 32


def numbers(count: int, start: int = 0) -> list[int]:
    return [(7 * i + start) % 64 for i in range(count)]


BEGIN = numbers(100)
FIRST, SECOND = BEGIN + numbers(40, start=3), BEGIN + numbers(50, start=5)


def opened(path: Path, sequences: int, share: float | None = None, **settings: Any) -> edge.Model:
    planned = edge.plan(path, "1GiB", 256, threads=1, batch=BATCH, sequences=sequences)
    options = edge.LoadOptions(warm_start=False, speculate="off", **settings)
    return edge.load(planned if share is None else streamed(planned, share), options=options)


@pytest.fixture(params=[None, 0.5], ids=["resident", "streamed"])
def model(request: pytest.FixtureRequest, tiny_model: TinyModel, trunk_dir: Path) -> Any:
    """A random model of three sequences."""
    with opened(tiny_model(shape=SHAPE), 3, request.param, cache_dir=trunk_dir) as loaded:
        yield loaded
        loaded.check_integrity()


@pytest.fixture
def lone(tiny_model: TinyModel, trunk_dir: Path) -> Iterator[edge.Model]:
    """The same model with one sequence."""
    with opened(tiny_model(shape=SHAPE), 1, cache_dir=trunk_dir) as loaded:
        yield loaded


def told(model: edge.Model, prompt: list[int], seed: int = -1) -> tuple[list[int], int]:
    """The text after a prompt, and how many tokens of the prompt were computed."""
    generation = model.generate(prompt, 6, temperature=0, seed=seed)
    assert generation.text and generation.stats is not None
    model.check_integrity()
    return generation.tokens, generation.stats.prompt_tokens


def after(model: edge.Model) -> npt.NDArray[np.float32]:
    """The logits after three more tokens of the text that ended last."""
    logits = model.verify([9, 8, 7])
    model.rewind(3)
    return logits


def test_a_text_computes_what_no_other_sequence_holds(model: edge.Model, lone: edge.Model) -> None:
    """It has the bits of one that goes on in the place of the other text, which stays."""
    first, second = told(lone, FIRST), told(lone, SECOND)
    assert second[1] == len(SECOND) - len(BEGIN)
    assert told(model, FIRST) == first
    assert told(model, SECOND) == second
    assert np.array_equal(after(model), after(lone))
    assert told(model, FIRST)[1] == 0  # it is still there
    assert [len(each.tokens) for each in model._loop.sequences].count(0) == 1


def test_with_a_seed_only_what_a_new_context_computes_in_the_same_batches(
    model: edge.Model, lone: edge.Model
) -> None:
    """The bits of a prompt's token depend on the tokens that are computed in one batch with it."""
    anew = told(lone, SECOND, seed=1)
    assert anew[1] == len(SECOND)
    told(model, FIRST, seed=1)
    tokens, computed = told(model, SECOND, seed=1)
    assert computed == len(SECOND) - len(BEGIN) // BATCH * BATCH
    assert tokens == anew[0]
    assert np.array_equal(after(model), after(lone))


def test_the_same_prompt_costs_nothing_in_another_sequence(model: edge.Model) -> None:
    """Its logits are copied too. The first text is under way, so its sequence is not free."""
    under_way = model.generate(FIRST, 6, temperature=0)
    next(under_way)
    tokens, computed = told(model, FIRST)
    assert computed == 0
    assert "".join(under_way) and under_way.tokens == tokens


def test_prompts_that_come_together_compute_their_beginning_once(model: edge.Model) -> None:
    both = [model.generate(prompt, 6, temperature=0) for prompt in (FIRST, SECOND)]
    assert all(zip(*both, strict=True))
    computed = [each.stats.prompt_tokens for each in both if each.stats is not None]
    new = [len(FIRST) - len(BEGIN), len(SECOND) - len(BEGIN)]
    assert sum(computed) <= len(BEGIN) + sum(new) + 2 * BATCH < len(FIRST) + len(SECOND)


def test_texts_wait_on_disk_that_lose_their_sequence_to_a_copy(
    tiny_model: TinyModel, tmp_path: Path
) -> None:
    with opened(tiny_model(shape=SHAPE), 2, cache_dir=tmp_path, kv_disk="1GiB") as model:
        other = numbers(60, start=1)
        told(model, other)
        told(model, FIRST)
        assert told(model, [*BEGIN, *numbers(110, start=5)])[1] == 110  # in the place of `other`
        assert [text.num_tokens for text in list_texts(kv_folder(tmp_path))] == [len(other) + 5]
        assert told(model, other)[1] == 1


@pytest.mark.parametrize("architecture", ["gpt-oss", "deepseek2"])
def test_layers_that_see_a_window_or_a_latent_are_copied(
    architecture: str, tiny_model: TinyModel
) -> None:
    path = tiny_model(architecture, shape=SHAPE)
    with opened(path, 1) as lone:
        expected = [told(lone, FIRST), told(lone, SECOND)]
    with opened(path, 3) as model:
        assert [told(model, FIRST), told(model, SECOND)] == expected


def test_a_recurrent_models_state_is_not_copied(tiny_model: TinyModel) -> None:
    """It is one of its whole text, and llama.cpp's copy of it is the same memory."""
    with opened(tiny_model("lfm2moe", shape=SHAPE), 2) as model:
        told(model, FIRST)
        assert told(model, SECOND)[1] == len(SECOND)
