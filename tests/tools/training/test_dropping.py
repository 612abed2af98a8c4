"""The comparison of rules: what each wants, and that no rule at all changes nothing."""

import numpy as np
import pytest
import torch

from haversack.cache.precision import HIGH, LOW, SKIP
from haversack.edge.loading import builtin_model
from haversack.tools.training.dropping import (
    Comparison,
    at_random,
    by_rank,
    by_score,
)
from haversack.tools.training.export import load_gguf

WEIGHTS = np.array([[0.1, 0.6, 0.2, 0.1], [0.25, 0.25, 0.25, 0.25]], np.float32)


def test_the_last_ranks_are_skipped() -> None:
    assert by_rank(0.25)(WEIGHTS).tolist() == [[0, 0, 0, 2], [0, 0, 0, 2]]
    assert by_rank(0.5)(WEIGHTS).tolist() == [[2, 0, 0, 2], [0, 0, 2, 2]]


def test_shares_are_kept() -> None:
    weights = np.random.default_rng(1).dirichlet([1.0] * 4, 500).astype(np.float32)
    scored, drawn = by_score(weights, 0.3, 0.1)(weights), at_random(0.25)(weights)
    assert (scored == LOW).mean() == pytest.approx(0.3, abs=0.01)
    assert (scored == SKIP).mean() == pytest.approx(0.1, abs=0.01)
    assert (drawn == SKIP).mean() == pytest.approx(0.25, abs=0.05)
    assert set(np.unique(drawn)) == {HIGH, SKIP}


def test_exact_is_the_model_and_skipping_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("haversack.tools.training.dropping.low_matrices", high_matrices)
    model, _ = load_gguf(builtin_model())
    windows = np.random.default_rng(0).integers(100, 4000, (1, 41))
    with torch.no_grad():
        logits = model(torch.from_numpy(windows[:, :-1]))[0]
    comparison = Comparison(model, windows)
    torch.testing.assert_close(comparison.exact[0], logits, rtol=1e-3, atol=1e-3)
    row = comparison.row("by rank", by_rank(0.5), 0, 0.5)
    assert float(row["bytes"]) < 80 and float(row["divergence"]) > 0
    assert 0 < float(row["used skipped"].rstrip("%")) < 50
    assert comparison.weights(windows[0]).shape == (40 * 8, 4)


def high_matrices(_: object) -> list[list[torch.Tensor]]:
    """Low copies that are the originals, because making others takes minutes."""
    named = dict(load_gguf(builtin_model())[0].named_parameters())
    kinds = ("gate", "up", "down")
    return [[named[f"blk.{layer}.ffn_{kind}_exps"] for kind in kinds] for layer in range(8)]
