"""The meter of fidelity: its numbers beside plain NumPy, and its memory."""

import sys

import numpy as np
import pytest

from haversack.quant.fidelity import FidelityMeter, FidelityReport, Logits


def drawn(num_tokens: int, noise: float) -> tuple[Logits, Logits, list[int]]:
    rng = np.random.default_rng(1)
    exact = rng.normal(0, 3, (num_tokens, 50)).astype(np.float32)
    other = exact + rng.normal(0, noise, exact.shape).astype(np.float32)
    return exact, other, rng.integers(50, size=num_tokens).tolist()


def metered(exact: Logits, other: Logits, tokens: list[int]) -> FidelityReport:
    meter = FidelityMeter()
    for one, another, token in zip(exact, other, tokens, strict=True):
        meter.add(one, another, token)
    return meter.report()


def test_the_numbers_are_those_of_their_definitions() -> None:
    exact, other, tokens = drawn(4000, noise=0.3)
    p, q = (np.exp(x) / np.exp(x).sum(1, keepdims=True) for x in map(np.float64, (exact, other)))
    rows = np.arange(len(tokens))
    kl = (p * np.log(p / q)).sum(1)
    found = metered(exact, other, tokens)
    assert found.num_tokens == 4000
    assert found.exact_perplexity == pytest.approx(np.exp(-np.log(p[rows, tokens]).mean()))
    assert found.perplexity == pytest.approx(np.exp(-np.log(q[rows, tokens]).mean()))
    assert found.perplexity_rise == pytest.approx(found.perplexity / found.exact_perplexity - 1)
    assert found.kl_mean == pytest.approx(kl.mean())
    assert found.kl_p999 == pytest.approx(np.quantile(kl, 0.999, method="inverted_cdf"), rel=0.03)
    assert found.top1_agreement == (p.argmax(1) == q.argmax(1)).mean()


def test_equal_logits_diverge_by_nothing() -> None:
    exact, _, tokens = drawn(100, noise=0)
    found = metered(exact, exact, tokens)
    assert (found.kl_mean, found.kl_p999, found.perplexity_rise) == (0, 0, 0)
    assert found.top1_agreement == 1


def test_a_constant_on_all_logits_changes_nothing() -> None:
    exact, _, tokens = drawn(50, noise=0)
    found = metered(exact, exact + np.float32(64), tokens)
    assert found.kl_mean < 1e-6
    assert found.top1_agreement == 1


def test_one_bad_token_in_a_thousand_is_seen() -> None:
    exact, other, tokens = drawn(1000, noise=0.01)
    other[500, 7] += 100
    found = metered(exact, other, tokens)
    assert found.kl_p999 < 0.001
    other[[200, 300], 7] += 100
    assert metered(exact, other, tokens).kl_p999 > 10


def test_memory_does_not_grow_with_the_text() -> None:
    def held_bytes(num_tokens: int) -> int:
        meter = FidelityMeter()
        exact, other, tokens = drawn(num_tokens, noise=1)
        for one, another, token in zip(exact, other, tokens, strict=True):
            meter.add(one, another, token)
        parts = vars(meter).values()
        return sum(
            part.nbytes if isinstance(part, np.ndarray) else sys.getsizeof(part) for part in parts
        )

    assert held_bytes(3000) == held_bytes(3)


def test_extreme_logits_are_finite_numbers() -> None:
    exact = np.array([0, 3e4, -3e4], np.float32)
    found = metered(exact[None], -exact[None], [0])
    assert found.kl_mean == pytest.approx(6e4)
    assert 4000 <= found.kl_p999 <= 4096  # the last bin
    assert found.exact_perplexity < float("inf")
