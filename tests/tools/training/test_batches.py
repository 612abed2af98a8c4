"""Batches: every token once, each window's last token the next one's first."""

import numpy as np
import pytest

from haversack.tools.training.batches import Batches, token_row, windows_at, windows_of
from haversack.tools.training.corpus import Source
from haversack.tools.training.vocabulary import END_OF_TEXT_ID, Vocabulary

IDS = np.arange(1000, dtype=np.uint16)


def test_batches_go_through_the_text_and_start_again() -> None:
    batches = Batches(IDS, window_tokens=50, batch_tokens=200)
    first, second = batches.batch(0), batches.batch(1)
    assert first.shape == (4, 51) and first.dtype == np.int64
    assert first[:, :-1].ravel().tolist() == list(range(200))
    assert second[0, 0] == first[-1, -1] == 200
    assert batches.batch(4)[0, 0] == 0  # the next 200 would go beyond the end
    again = [int(batches.batch(index)[0, 0]) for index in range(4, 8)]
    assert all(0 <= start <= 800 for start in again)


def test_a_text_shorter_than_a_batch_is_refused() -> None:
    with pytest.raises(ValueError, match="1000 tokens of text are too few for a batch of 1000"):
        Batches(IDS, 50, 1000)


def test_windows_hold_one_token_more_than_is_fed() -> None:
    assert windows_at(IDS, np.array([0, 7]), 3).tolist() == [[0, 1, 2, 3], [7, 8, 9, 10]]


def test_windows_are_spread_over_the_text() -> None:
    windows = windows_of(IDS[:100], window_tokens=10, most_tokens=30)
    assert windows[:, 0].tolist() == [0, 44, 89]
    assert windows[2].tolist() == list(range(89, 100))
    assert windows_of(IDS[:100], 99, 10_000).shape == (1, 100)
    with pytest.raises(ValueError, match="100 tokens of text are no window of 100"):
        windows_of(IDS[:100], 100, 100)


def test_a_batch_can_be_spread_over_the_text() -> None:
    windows = Batches(IDS, window_tokens=50, batch_tokens=200).spread()
    assert windows.shape == (4, 51)
    assert windows[:, 0].tolist() == [0, 316, 632, 949]


def test_documents_repeat_in_a_seeded_order_each_after_an_end() -> None:
    vocabulary = Vocabulary.train(["a fox and a crow and a dog"] * 9, 262)
    sources = [Source("once", ["fox", "crow"]), Source("thrice", ["dog"], repeats=3)]
    row = token_row(sources, vocabulary, seed=1)
    texts = vocabulary.decode(row.tolist()).split("<|endoftext|>")
    assert sorted(texts) == ["", "crow", "dog", "dog", "dog", "fox"]
    assert row[0] == END_OF_TEXT_ID and row.dtype == np.uint16
    assert row.tolist() == token_row(sources, vocabulary, seed=1).tolist()
    orders = {tuple(token_row(sources, vocabulary, seed)) for seed in range(9)}
    assert len(orders) > 1
