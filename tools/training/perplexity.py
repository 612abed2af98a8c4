"""How well a model predicts text, beside counting tokens.

Losses are in nats a token. Models with different vocabularies can only be compared in bits a byte.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch.nn import functional

from haversack.tools.training.batches import Ids
from haversack.tools.training.decoder import Decoder, Routing

_WINDOWS_AT_ONCE = 8


@dataclass(frozen=True)
class Loss:
    """The mean loss over `num_tokens` tokens, which stand for `num_bytes` of text."""

    nats: float
    num_tokens: int
    num_bytes: int

    @property
    def perplexity(self) -> float:
        return math.exp(self.nats)

    @property
    def bits_per_byte(self) -> float:
        return self.nats * self.num_tokens / self.num_bytes / math.log(2)


@torch.no_grad()
def model_nats(
    model: Decoder, windows: npt.NDArray[np.int64], routing: Routing | None = None
) -> float:
    """Return the model's mean loss on the tokens of `windows`, the first of each left out; fill
    `routing`."""
    total = 0.0
    for start in range(0, len(windows), _WINDOWS_AT_ONCE):
        part = torch.from_numpy(windows[start : start + _WINDOWS_AT_ONCE])
        logits = model(part[:, :-1], routing)
        losses = functional.cross_entropy(
            logits.flatten(0, 1), part[:, 1:].flatten(), reduction="sum"
        )
        total += float(losses)
    return total / windows[:, 1:].size


class CountedPairs:
    """The baselines: how often tokens, and pairs of them, occur in the training text.

    The probability of a pair is mixed with that of its second token as Witten and Bell (1991) do:
    the more different tokens followed the first, the more a new one is expected.
    """

    def __init__(self, ids: Ids, vocab_size: int) -> None:
        counts = np.bincount(ids, minlength=vocab_size).astype(np.float64) + 1
        self._single = counts / counts.sum()
        keys = ids[:-1].astype(np.int64) * vocab_size + ids[1:]
        self._pairs = np.bincount(keys, minlength=vocab_size**2).reshape(vocab_size, vocab_size)
        self._seen = self._pairs.sum(axis=1)
        self._distinct = np.count_nonzero(self._pairs, axis=1)

    def unigram_nats(self, windows: npt.NDArray[np.int64]) -> float:
        """Return the mean loss if every token is predicted by its frequency."""
        return float(-np.log(self._single[windows[:, 1:]]).mean())

    def bigram_nats(self, windows: npt.NDArray[np.int64]) -> float:
        """Return the mean loss if every token is predicted by the one before it."""
        first, second = windows[:, :-1], windows[:, 1:]
        weight = self._seen[first] + self._distinct[first]
        expected = self._pairs[first, second] + self._distinct[first] * self._single[second]
        mixed = np.where(weight > 0, expected / np.maximum(weight, 1), self._single[second])
        return float(-np.log(mixed).mean())


def mean_loss(losses: Sequence[Loss]) -> Loss:
    """Return the loss over all their tokens together."""
    num_tokens = sum(loss.num_tokens for loss in losses)
    nats = sum(loss.nats * loss.num_tokens for loss in losses) / num_tokens
    return Loss(nats, num_tokens, sum(loss.num_bytes for loss in losses))
