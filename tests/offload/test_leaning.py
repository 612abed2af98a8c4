"""Routers that lean to slots: the engine's choice is that of `cache/routing.py`, and nothing else
changes."""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from haversack.cache.routing import Leaning, leaning_choice
from haversack.devices._native import address_of
from haversack.devices.ggml import GraphNode
from haversack.offload import _native as native
from haversack.tools.models.architectures import ARCHITECTURES, TinyShape

SHAPE = TinyShape(num_experts=16, num_experts_per_tok=4)
TOKENS = np.random.default_rng(0).integers(0, SHAPE.vocab_size, 40).tolist()
PREFILL = 20
LEANING = Leaning(0.3)

TinyModel = Callable[..., Path]
Choices = list[tuple[int, npt.NDArray[np.int32]]]
SCORES = st.floats(-4, 4, width=32) | st.sampled_from([-np.inf, np.inf, np.nan, 0.0, 0.5])


# ---------------------------------------------------------------------- the rule
@given(
    st.lists(st.tuples(SCORES, st.booleans()), min_size=1, max_size=16),
    st.integers(1, 16),
    st.floats(0, 1, width=32),
    st.integers(1, 4),
)
def test_the_engine_has_the_rule_of_the_reference(
    experts: list[tuple[float, bool]], num_used: int, bias: float, num_kept: int
) -> None:
    scores = np.array([score for score, _ in experts], np.float32)
    resident = np.array([there for _, there in experts])
    num_used = min(num_used, len(experts))
    ranked = np.argsort(-scores, kind="stable").astype(np.int32)
    plain = ranked[:num_used].tolist()
    sizes = len(experts), num_used, bias, num_kept
    num_changed = native.lean(address_of(ranked), address_of(scores), address_of(resident), *sizes)
    with np.errstate(invalid="ignore"):
        expected = leaning_choice(scores, resident, num_used, Leaning(bias, num_kept))
    assert ranked[:num_used].tolist() == expected.tolist()
    assert sorted(ranked.tolist()) == list(range(len(experts)))
    assert num_changed == len(set(ranked[:num_used].tolist()) - set(plain))


# --------------------------------------------------------------------- real models
def replayed(model: Any, choices: Choices) -> npt.NDArray[np.float32]:
    """Return the logits with these choices of experts forced, in their order."""
    left = iter(choices)

    def force(layer: int, ids: npt.NDArray[np.int32], _: GraphNode) -> None:
        of_layer, ids[:] = next(left)
        assert of_layer == layer

    model.engine.watch(force)
    logits: npt.NDArray[np.float32] = model.logits(TOKENS, PREFILL)
    assert next(left, None) is None
    return logits


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_architecture(architecture: str, tiny_model: TinyModel, open_model: Any) -> None:
    """The choice is that of the rule, and with the same choice forced an exact model has the same
    bits: nothing but the choice has changed, in passes of few rows alone."""
    path, choices = tiny_model(architecture, shape=SHAPE), Choices()
    model = open_model(path, 0.3, leaning=LEANING)

    def compare(layer: int, ids: npt.NDArray[np.int32], choice: GraphNode) -> None:
        choices.append((layer, ids.copy()))
        scores = choice.source(0).source(0).array(np.float32)[0]
        resident = np.array(model.experts.held_copies()[layer]) > 0
        leaning = LEANING if len(ids) == 1 else Leaning()
        expected = [leaning_choice(row, resident, ids.shape[1], leaning) for row in scores]
        np.testing.assert_array_equal(ids, expected)

    model.engine.watch(compare)
    logits = model.logits(TOKENS, PREFILL)
    np.testing.assert_array_equal(logits, replayed(open_model(path, 0.3), choices))
    assert model.experts.level_counts().leaned > 0


def test_fewer_bytes_are_read_while_routers_predict(tiny_model: TinyModel, open_model: Any) -> None:
    """Routers are learnt from choices of their own, and predict choices that lean."""
    path = tiny_model(shape=SHAPE)
    exact, leaning = open_model(path, 0.3), open_model(path, 0.3, leaning=Leaning(0.5))
    for model in (exact, leaning):
        model.logits(TOKENS, PREFILL)
    assert exact.experts.level_counts().leaned == 0 < leaning.experts.level_counts().leaned
    assert leaning.experts.prefetch_counts().started > 0
    assert leaning.bytes_read < 0.8 * exact.bytes_read


def test_few_rows_in_one_pass(tiny_model: TinyModel, open_model: Any) -> None:
    model = open_model(tiny_model(shape=SHAPE), 0.3, leaning=LEANING)
    model.experts.predict_by_routers(False)
    assert np.isfinite(model.rows(TOKENS[:7])).all()
    assert np.isfinite(model.rows(TOKENS[7:14])).all()
    assert model.experts.level_counts().leaned > 0


def test_a_graph_without_a_choice_of_a_known_form_is_told(
    tiny_model: TinyModel,
    open_model: Any,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(native, "engine_set_leaning", lambda *_: None)
    with caplog.at_level(logging.WARNING, "haversack.engine"):
        open_model(tiny_model(shape=SHAPE), leaning=LEANING)
    assert "cannot lean to slots" in caplog.text
