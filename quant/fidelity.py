"""How near a model in another precision comes to itself: numbers from the logits of both.

Logits are given token by token, and memory does not grow with the text. Axis letter: V tokens of
the vocabulary.
"""

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Logits = npt.NDArray[np.float32]
_LogProbabilities = npt.NDArray[np.float64]

_BINS_PER_OCTAVE = 32  # a quantile is found to 2 %
_LEAST_EXPONENT, _MOST_EXPONENT = -40, 12  # of the divergences that have bins of their own, in nats
_MOST_NATS = 700.0  # whose exponential is a number


@dataclass(frozen=True)
class FidelityReport:
    """What a meter found over `num_tokens` predictions. `kl_mean` and `kl_p999`, the 99.9th
    percentile, are Kullback-Leibler divergences from exact, in nats a token. `top1_agreement` is
    the share of predictions whose likeliest token is that of exact."""

    num_tokens: int
    exact_perplexity: float
    perplexity: float
    kl_mean: float
    kl_p999: float
    top1_agreement: float

    @property
    def perplexity_rise(self) -> float:
        """Return by which share the perplexity is above that of exact."""
        return self.perplexity / self.exact_perplexity - 1


class FidelityMeter:
    """Compares predictions with those of exact."""

    def __init__(self) -> None:
        self._num_tokens = self._num_agreed = 0
        self._exact_nats = self._nats = self._kl = 0.0
        self._bins = np.zeros((_MOST_EXPONENT - _LEAST_EXPONENT) * _BINS_PER_OCTAVE, np.int64)

    def add(self, exact: Logits, logits: Logits, next_token: int) -> None:
        """Add a prediction: the logits (V,) of exact and of the other precision, and the token that
        the text has there."""
        expected, found = _log_probabilities(exact), _log_probabilities(logits)
        kl = max(0.0, float(np.exp(expected) @ (expected - found)))  # rounding may give less
        self._num_tokens += 1
        self._num_agreed += int(np.argmax(exact) == np.argmax(logits))
        self._exact_nats -= float(expected[next_token])
        self._nats -= float(found[next_token])
        self._kl += kl
        self._bins[_bin_of(kl)] += 1

    def report(self) -> FidelityReport:
        """Return what was found. At least one prediction must have been added."""
        count = self._num_tokens
        return FidelityReport(
            num_tokens=count,
            exact_perplexity=_perplexity(self._exact_nats / count),
            perplexity=_perplexity(self._nats / count),
            kl_mean=self._kl / count,
            kl_p999=self._quantile(0.999),
            top1_agreement=self._num_agreed / count,
        )

    def _quantile(self, share: float) -> float:
        """Return the divergence that `share` of the predictions do not exceed, to a bin."""
        place = int(np.searchsorted(np.cumsum(self._bins), share * self._num_tokens))
        return 2 ** (_LEAST_EXPONENT + place / _BINS_PER_OCTAVE) if place else 0.0


def _perplexity(nats: float) -> float:
    return math.exp(min(nats, _MOST_NATS))


def _log_probabilities(logits: Logits) -> _LogProbabilities:
    shifted = logits.astype(np.float64)
    shifted -= shifted.max()
    shifted -= math.log(float(np.exp(shifted).sum()))
    return shifted


def _bin_of(kl: float) -> int:
    """Return the bin whose upper bound is the first that `kl` does not exceed."""
    if kl <= 2.0**_LEAST_EXPONENT:
        return 0
    place = math.ceil((math.log2(kl) - _LEAST_EXPONENT) * _BINS_PER_OCTAVE)
    return min(place, (_MOST_EXPONENT - _LEAST_EXPONENT) * _BINS_PER_OCTAVE - 1)
