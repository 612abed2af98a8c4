"""How often a drafting model's tokens are right, by the probability that it gives them."""

from collections.abc import Sequence

_NUM_BUCKETS = 16
_MOST_LATER = 5  # places behind the first that have a rate of their own
_FIRST_LATER = 0.6  # until outcomes are known
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


class DrawnRates:
    """How often tokens of drafts that a model drew were taken: a rate for each place in a draft.
    The first token's rate depends on how likely the model's likeliest token was."""

    def __init__(self) -> None:
        self._first = Confidence()
        self._later = [Confidence() for _ in range(_MOST_LATER)]

    def of(self, sure: float, number: int) -> list[float]:
        """Return the rates of a draft of `number` tokens; `sure` is the probability of the
        likeliest first token."""
        later = [each.rate(_FIRST_LATER) for each in self._later]
        return [self._first.rate(sure), *later, *later[-1:] * number][:number]

    def note(self, sure: float, num_right: int, num_known: int) -> None:
        """Count a draft whose first `num_right` tokens were taken. Of its first `num_known` tokens
        it is known whether they were."""
        self._first.note([sure], min(num_right, 1))
        for place, rate in enumerate(self._later[: num_known - 1], start=1):
            if place <= num_right:
                rate.note([_FIRST_LATER], min(num_right - place, 1))


def _bucket(probability: float) -> int:
    return min(int(probability * _NUM_BUCKETS), _NUM_BUCKETS - 1)
