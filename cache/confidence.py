"""How often a drafting model's tokens are right, by the probability that it gives them."""

from collections.abc import Sequence

_NUM_BUCKETS = 16
_FIRST_WEIGHT, _MOST_WEIGHT = 4.0, 256.0  # outcomes


class Confidence:
    """Rates of right tokens by probability. Until outcomes are known they are the probabilities."""

    def __init__(self) -> None:
        self._rates = [(bucket + 0.5) / _NUM_BUCKETS for bucket in range(_NUM_BUCKETS)]
        self._weights = [_FIRST_WEIGHT] * _NUM_BUCKETS

    def rate(self, probability: float) -> float:
        """Return how often a token of this probability was right where those before it were."""
        return self._rates[_bucket(probability)]

    def note(self, probabilities: Sequence[float], num_right: int) -> None:
        """Count a draft with these probabilities, of which the first `num_right` came true. What
        stands behind the first wrong one says nothing."""
        for idx, probability in enumerate(probabilities[: num_right + 1]):
            bucket = _bucket(probability)
            self._weights[bucket] = weight = min(self._weights[bucket] + 1, _MOST_WEIGHT)
            self._rates[bucket] += (float(idx < num_right) - self._rates[bucket]) / weight


def _bucket(probability: float) -> int:
    return min(int(probability * _NUM_BUCKETS), _NUM_BUCKETS - 1)
