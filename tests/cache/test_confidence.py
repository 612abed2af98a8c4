"""Rates of right tokens by the probability that a drafting model gives them."""

from haversack.cache.confidence import Confidence


def test_probabilities_count_until_outcomes_are_known() -> None:
    confidence = Confidence()
    assert abs(confidence.rate(0.9) - 0.9) < 0.05 and confidence.rate(1.0) > confidence.rate(0.1)


def test_a_model_that_is_too_sure_of_itself_is_found_out() -> None:
    confidence = Confidence()
    for _ in range(100):
        confidence.note([0.99, 0.99, 0.99], 0)
    assert confidence.rate(0.99) < 0.1
    assert confidence.rate(0.5) > 0.4


def test_what_stands_behind_a_wrong_token_says_nothing() -> None:
    confidence = Confidence()
    before = confidence.rate(0.3)
    confidence.note([0.9, 0.6, 0.3], 1)
    assert confidence.rate(0.3) == before
    confidence.note([0.9, 0.6, 0.3], 3)
    assert confidence.rate(0.3) > before
