"""Lessons: which tokens of a text are direct, which are parts of runs, and what is kept of each."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from haversack import edge
from haversack.cache.cross_vocab import PairStore
from haversack.devices.llama_model import LlamaModel
from haversack.edge.draft_text import Vocabularies
from haversack.edge.learning.lessons import (
    CONTEXT_TOKENS,
    MOST_LIKELY,
    NEW_TOKENS,
    Likely,
    Maker,
    Notes,
    likely,
)

DRAFTER = Path(__file__).parents[2] / "data" / "models" / "tales-draft.gguf"


@pytest.fixture(scope="module")
def both() -> Iterator[Vocabularies]:
    target, drafter = LlamaModel(edge.builtin_model(), dry=True), LlamaModel(DRAFTER, dry=True)
    yield Vocabularies(target.vocabulary, drafter.vocabulary, PairStore())
    target.close()
    drafter.close()


def certain(tokens: list[int]) -> list[Likely]:
    """A target that is sure of each token."""
    return [Likely(np.array([token]), np.zeros(1, np.float32)) for token in tokens]


def test_every_token_behind_the_prompt_is_direct_or_part_of_a_run(both: Vocabularies) -> None:
    text = both.target.tokenize("Once upon a time there was a woodcutter. He was astonished.")
    lesson = Maker(both).made(text, certain(text[4:]))
    assert lesson is not None
    pieces = [both.draft.piece(int(token)) for token in lesson.tokens]
    told = sorted([*lesson.direct, *lesson.split])
    assert told == list(range(told[0], len(lesson.tokens)))
    rest = b"".join(map(both.target.piece, text[4:]))
    assert b"".join(pieces[place] for place in told) == rest
    for place, ids, logprobs in zip(lesson.direct, lesson.ids, lesson.logprobs, strict=True):
        assert ids[0] == lesson.tokens[place]  # its twin is the one that the target was sure of
        assert logprobs[0] == 0 and np.isneginf(logprobs[1:]).all()
    assert len(lesson.split) >= 2 and len(lesson.direct) >= 2


def test_one_vocabulary_has_direct_tokens_alone() -> None:
    target = LlamaModel(edge.builtin_model(), dry=True)
    both = Vocabularies(target.vocabulary, target.vocabulary, PairStore())
    text = target.vocabulary.tokenize("Once upon a time there was")
    lesson = Maker(both).made(text, certain(text[2:]))
    assert lesson is not None and not len(lesson.split)
    assert list(lesson.direct) == list(range(2, len(text)))
    assert list(lesson.ids[:, 0]) == text[2:]
    target.close()


def test_the_likeliest_tokens_are_kept_with_their_chances() -> None:
    logits = np.random.default_rng(1).normal(size=4000).astype(np.float32)
    found = likely(logits)
    chances = np.exp(logits.astype(np.float64)) / np.exp(logits.astype(np.float64)).sum()
    assert len(found.ids) == MOST_LIKELY
    assert set(found.ids) == set(np.argsort(logits)[-MOST_LIKELY:])
    np.testing.assert_allclose(np.exp(found.logprobs), chances[found.ids], rtol=1e-4)
    logits[7] = 100
    assert list(likely(logits).ids) == [7]


def test_notes_become_a_lesson_when_there_are_enough(both: Vocabularies) -> None:
    text = both.target.tokenize("Once upon a time there was a fox." * 30)[: 2 * NEW_TOKENS + 20]
    logits, maker = np.zeros(both.target.num_tokens, np.float32), Maker(both)
    notes = Notes(text[:20])
    due = [notes.note(logits, token) for token in text[20:]]
    assert due.index(True) == NEW_TOKENS - 1
    lesson = notes.taken(maker)
    assert lesson is not None and len(lesson.direct) + len(lesson.split) >= NEW_TOKENS
    assert notes.taken(maker) is None  # nothing new
    for token in text[:NEW_TOKENS]:
        notes.note(logits, token)
    again = notes.taken(maker)
    assert again is not None and len(again.tokens) <= 2 * (CONTEXT_TOKENS + NEW_TOKENS)
