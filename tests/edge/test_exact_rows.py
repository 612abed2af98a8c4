"""Rows that are computed together have the bits of single tokens: those of one sequence that are
verified, and those of several sequences that are written at the same time."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from haversack import edge
from haversack.edge.planner import streamed
from haversack.tools.models.architectures import TinyShape

TinyModel = Callable[..., Path]
SHAPE = TinyShape(num_experts=8)
PREFILL, TOKENS = (
    500,
    30,
)  # llama.cpp pads the attention's length to 256 tokens, and splits it at 512
SHARES = [None, 0.0, 0.25, 1.0]
OPENINGS = ["Once upon a time", "The old king", "A little fox", "In the deep forest"]
ARCHITECTURES = ["qwen3moe", "gpt-oss", "deepseek2", "qwen35moe", "lfm2moe"]


def opened(path: Path, trunk_dir: Path, share: float | None, sequences: int = 1) -> edge.Model:
    """The model with slots for a share of its experts, or all in memory."""
    planned = edge.plan(path, "1GiB", ctx=768, threads=2, batch=64, sequences=sequences)
    if share is not None:
        planned = streamed(planned, share)
    options = edge.LoadOptions(cache_dir=trunk_dir, warm_start=False)
    return edge.load(planned, options=options)


@pytest.fixture(params=[*ARCHITECTURES, "builtin"])
def path(request: pytest.FixtureRequest, tiny_model: TinyModel) -> Path:
    if request.param == "builtin":
        return edge.builtin_model()
    return tiny_model(request.param, shape=SHAPE)


def cut(tokens: Sequence[int], lengths: Sequence[int]) -> list[Sequence[int]]:
    """`tokens` in pieces of these lengths, over and over again."""
    pieces, first = list[Sequence[int]](), 0
    while first < len(tokens):
        length = lengths[len(pieces) % len(lengths)]
        pieces.append(tokens[first : first + length])
        first += length
    return pieces


@pytest.mark.parametrize("share", SHARES)
def test_verified_rows_have_the_bits_of_single_tokens(
    share: float | None, path: Path, trunk_dir: Path
) -> None:
    """Also where a verification crosses from one length of the attention to the next."""
    with opened(path, trunk_dir, share) as model:
        tokens = np.random.default_rng(1).integers(5, 250, PREFILL + TOKENS).tolist()
        expected = model.logits(tokens, PREFILL)[1:]
        model.logits(tokens[:PREFILL], PREFILL)
        rows = [model.verify(piece) for piece in cut(tokens[PREFILL:], [7, 2, 4, 3, 6, 5])]
        assert (np.concatenate(rows) == expected).all()
        model.check_integrity()


@pytest.mark.parametrize("share", [None, 0.25])
def test_rows_that_were_kept_after_a_rewind_have_those_bits(
    share: float | None, path: Path, trunk_dir: Path
) -> None:
    """A recurrent model computes them again, as rows."""
    with opened(path, trunk_dir, share) as model:
        tokens = np.random.default_rng(2).integers(5, 250, 40).tolist()
        expected = model.logits(tokens, 20)[1:]
        model.logits(tokens[:20], 20)
        for first in range(20, 36, 4):
            model.verify([*tokens[first : first + 4], 7, 8, 9])
            model.rewind(3)
            model.check_integrity()
        assert (model.verify(tokens[36:40]) == expected[16:20]).all()


@pytest.mark.parametrize("share", [None, 0.0, 0.25])
def test_texts_written_together_are_those_written_alone(
    share: float | None, path: Path, trunk_dir: Path
) -> None:
    prompts: list[str | list[int]] = list(OPENINGS)
    if path != edge.builtin_model():
        prompts = [[number, *range(20 + number, 40 + 5 * number)] for number in range(4)]

    def generations(model: edge.Model) -> list[edge.Generation]:
        return [model.generate(prompt, 24, temperature=0) for prompt in prompts]

    with opened(path, trunk_dir, share) as alone:
        expected = list[str]()
        for generation in generations(alone):
            alone.logits([5], 1)  # so that no prompt finds anything of an earlier one
            expected.append(generation.text)
    passes: list[int] = []
    with opened(path, trunk_dir, share, sequences=4) as model:
        _count_rows(model, passes)
        texts = ["", "", "", ""]
        begun = generations(model)
        while any(generation.finish_reason is None for generation in begun):
            for number, generation in enumerate(begun):
                texts[number] += next(generation, "")
        model.check_integrity()
    assert texts == expected
    assert 4 in passes


def _count_rows(model: edge.Model, passes: list[int]) -> None:
    assert model._engine is not None
    context: Any = model._engine.context
    compute = context.compute

    def counted(rows: Sequence[Any]) -> None:
        passes.append(len(rows))
        compute(rows)

    context.compute = counted
