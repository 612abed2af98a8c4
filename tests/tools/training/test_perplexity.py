"""Losses: counted by hand, and of a model that knows nothing."""

import math

import numpy as np
import pytest
import torch

from haversack.tools.training.batches import windows_of
from haversack.tools.training.decoder import Decoder, DecoderShape, Routing
from haversack.tools.training.perplexity import (
    CountedPairs,
    Loss,
    mean_loss,
    model_nats,
)

IDS = np.arange(100, dtype=np.uint16)


def test_a_model_that_knows_nothing_guesses() -> None:
    shape = DecoderShape(vocab_size=64, hidden_size=32, num_hidden_layers=1, num_experts=4)
    model = Decoder(shape)
    with torch.no_grad():
        model.output.zero_()
    windows = windows_of(IDS % 64, 20, 80)
    routing = Routing([], [], [])
    assert model_nats(model, windows, routing) == pytest.approx(math.log(64))
    assert sum(len(chosen) for chosen in routing.chosen) == 80


def test_counted_tokens_and_pairs() -> None:
    text = np.array([0, 1, 0, 1, 0, 2], np.uint16)
    counted = CountedPairs(text, vocab_size=4)
    windows = np.array([[0, 1]])
    frequency = (2 + 1) / (6 + 4)  # every token counts once more than seen
    assert counted.unigram_nats(windows) == pytest.approx(-math.log(frequency))
    # 1 followed 0 twice of three times; 2 different tokens followed it
    mixed = (2 + 2 * frequency) / (3 + 2)
    assert counted.bigram_nats(windows) == pytest.approx(-math.log(mixed))
    unseen = np.array([[3, 1]])
    assert counted.bigram_nats(unseen) == pytest.approx(-math.log(frequency))


def test_pairs_are_probabilities() -> None:
    text = np.random.RandomState(0).randint(0, 5, 200).astype(np.uint16)
    counted = CountedPairs(text, vocab_size=6)
    for first in range(6):
        chances = [math.exp(-counted.bigram_nats(np.array([[first, i]]))) for i in range(6)]
        assert sum(chances) == pytest.approx(1)


def test_losses_are_weighed_by_tokens() -> None:
    together = mean_loss([Loss(1.0, 100, 400), Loss(4.0, 50, 100)])
    assert (together.nats, together.num_tokens, together.num_bytes) == (2.0, 150, 500)
    assert together.perplexity == pytest.approx(math.e**2)
    assert together.bits_per_byte == pytest.approx(2.0 * 150 / 500 / math.log(2))
