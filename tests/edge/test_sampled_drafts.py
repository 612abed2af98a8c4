"""Tokens drawn at random with the drafts of another model: as likely as the model says."""

from collections.abc import Callable, Iterator
from itertools import product
from pathlib import Path
from random import Random

import numpy as np
import numpy.typing as npt
import pytest

from haversack import edge
from haversack.tools.models.architectures import TinyShape

TinyModel = Callable[..., Path]
NUM_TOKENS = 16
SHAPE = TinyShape(num_hidden_layers=2, num_experts=4, vocab_size=NUM_TOKENS)
PROMPT = [3, 7, 1, 5]
NUM_TEXTS = 600
TEMPERATURE = 0.3
SAMPLING = edge.Sampling(temperature=TEMPERATURE, top_k=0, top_p=1.0, min_p=0.0)
LEAST_EXPECTED = 5.0  # of a cell of the chi-square test; rarer windows share one


@pytest.fixture(scope="module")
def drafting(tiny_model: TinyModel, trunk_dir: Path) -> Iterator[edge.Model]:
    """A model, and another one that drafts 3 tokens of it."""
    target, other = (tiny_model(shape=SHAPE, seed=seed) for seed in (0, 1))
    options = edge.LoadOptions(cache_dir=trunk_dir, warm_start=False, speculate=f"{other}:3")
    with edge.load(target, "2GiB", ctx=64, threads=1, options=options) as model:
        yield model


def windows_expected(model: edge.Model) -> npt.NDArray[np.float64]:
    """The probability of each pair of second and third tokens of a text, (16, 16), by the logits
    of the model without drafts."""

    def next_shares(*tokens: int) -> npt.NDArray[np.float64]:
        given = [*PROMPT, *tokens]
        logits = model.logits(given, len(given))[-1].astype(np.float64) / TEMPERATURE
        shares = np.exp(logits - logits.max())
        return shares / shares.sum()

    expected = np.zeros((NUM_TOKENS, NUM_TOKENS))
    first = next_shares()
    for one, two in product(range(NUM_TOKENS), repeat=2):
        expected[two] += first[one] * next_shares(one)[two] * next_shares(one, two)
    return expected


def chi_square(counts: npt.NDArray[np.int64], expected: npt.NDArray[np.float64]) -> float:
    """How far counts are from what is expected, in standard deviations of a chi-square statistic
    (the approximation of Wilson and Hilferty)."""
    order = np.argsort(expected.ravel())
    wanted, found = expected.ravel()[order] * counts.sum(), counts.ravel()[order]
    num_rare = int((wanted < LEAST_EXPECTED).sum())
    cells = [(wanted[:num_rare].sum(), found[:num_rare].sum())] if num_rare else []
    cells += list(zip(wanted[num_rare:], found[num_rare:], strict=True))
    statistic = sum((seen - hoped) ** 2 / hoped for hoped, seen in cells)
    spread = 2 / (9 * (len(cells) - 1))
    return float(((statistic / (len(cells) - 1)) ** (1 / 3) - (1 - spread)) / spread**0.5)


def test_a_drawn_text_is_as_likely_as_without_drafts(
    drafting: edge.Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = windows_expected(drafting)
    monkeypatch.setattr(drafting, "_random", Random(1))  # a test that is the same each time
    assert expected.sum() == pytest.approx(1.0)
    counts = np.zeros((NUM_TOKENS, NUM_TOKENS), np.int64)
    before = drafting.stats()
    for _ in range(NUM_TEXTS):
        generation = drafting.generate(PROMPT, 4, SAMPLING)
        assert generation.text
        counts[generation.tokens[1], generation.tokens[2]] += 1
    spent = drafting.stats().since(before)
    wrong = 1 - spent.draft_accepted / spent.drafted
    assert 0.1 < wrong < 0.9  # both outcomes are common
    assert chi_square(counts, expected) < 3.5
    # The test would notice a text that comes from elsewhere.
    assert chi_square(counts, np.roll(expected, 1, axis=0)) > 10
    assert chi_square(counts, expected.T) > 10


def test_a_model_that_drafts_for_itself_is_always_right(
    tiny_model: TinyModel, trunk_dir: Path
) -> None:
    target = tiny_model(shape=SHAPE)
    options = edge.LoadOptions(cache_dir=trunk_dir, warm_start=False, speculate=f"{target}:3")
    with edge.load(target, "2GiB", ctx=64, threads=1, options=options) as model:
        for _ in range(5):
            assert model.generate(PROMPT, 20, SAMPLING).text
        assert 0 < model.stats().draft_accepted == model.stats().drafted


def test_texts_that_shall_be_repeatable_take_no_offers(
    drafting: edge.Model, tiny_model: TinyModel, trunk_dir: Path
) -> None:
    """Neither with a seed of their own nor with one of the model's: they are those without
    drafts."""
    target = tiny_model(shape=SHAPE, seed=0)
    options = edge.LoadOptions(cache_dir=trunk_dir, warm_start=False, speculate="off")
    with edge.load(target, "2GiB", ctx=64, threads=1, seed=3, options=options) as plain:
        of_model = [plain.generate(PROMPT, 20, SAMPLING).text for _ in range(3)]
        of_text = plain.generate(PROMPT, 20, SAMPLING, seed=8).text
    assert drafting.generate(PROMPT, 20, SAMPLING, seed=8).text == of_text
    options = edge.LoadOptions(
        cache_dir=trunk_dir, warm_start=False, speculate=f"{tiny_model(shape=SHAPE, seed=1)}:3"
    )
    with edge.load(target, "2GiB", ctx=64, threads=1, seed=3, options=options) as model:
        assert [model.generate(PROMPT, 20, SAMPLING).text for _ in range(3)] == of_model
        assert model.stats().drafted
