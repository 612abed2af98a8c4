"""Routers that lean to slots: the engine's choice is that of the rule here, and nothing else
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

from haversack.cache.routing import Leaning
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
RANKED = np.array([3.0, 5.0, 1.0, 4.0, 2.0], np.float32)  # 1 3 0 4 2
SCORES = st.floats(-4, 4, width=32) | st.sampled_from([-np.inf, np.inf, np.nan, 0.0, 0.5])


# ---------------------------------------------------------------------- the rule
def expected_choice(
    scores: npt.NDArray[np.float32],
    resident: npt.NDArray[np.bool_],
    num_used: int,
    leaning: Leaning,
) -> npt.NDArray[np.int32]:
    """The `num_used` experts chosen by their `scores` (E,), which the router chooses by: the
    highest score first, of equal scores the lowest id. `resident` (E,) tells which experts have a
    copy. A score of minus infinity says that an expert may not be chosen; where one is not a
    number, the router decides alone."""
    ranked = np.argsort(-scores, kind="stable").astype(np.int32)
    finite = scores[np.isfinite(scores)]
    if np.isnan(scores).any() or not finite.size:
        return ranked[:num_used]
    raised = scores + resident * (np.float32(leaning.bias) * (finite.max() - finite.min()))
    num_kept = min(leaning.num_kept, num_used)
    others = ranked[num_kept:]
    leaned = others[np.argsort(-raised[others], kind="stable")]
    chosen = [*ranked[:num_kept], *leaned[: num_used - num_kept]]
    return ranked[np.isin(ranked, chosen)]


def leaned_choice(
    scores: npt.NDArray[np.float32],
    resident: npt.NDArray[np.bool_],
    num_used: int,
    leaning: Leaning,
) -> tuple[npt.NDArray[np.int32], int]:
    """The engine's choice, and how many of it the router alone would not have chosen."""
    ranked = np.argsort(-scores, kind="stable").astype(np.int32)
    sizes = len(scores), num_used, leaning.bias, leaning.num_kept
    num_changed = native.lean(address_of(ranked), address_of(scores), address_of(resident), *sizes)
    assert sorted(ranked.tolist()) == list(range(len(scores)))
    return ranked[:num_used], num_changed


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
    leaning, num_used = Leaning(bias, num_kept), min(num_used, len(experts))
    plain = np.argsort(-scores, kind="stable")[:num_used].tolist()
    with np.errstate(invalid="ignore"):
        expected = expected_choice(scores, resident, num_used, leaning)
    choice, num_changed = leaned_choice(scores, resident, num_used, leaning)
    assert choice.tolist() == expected.tolist()
    assert num_changed == len(set(choice.tolist()) - set(plain))


def chosen(resident: list[int], num_used: int, leaning: Leaning) -> list[int]:
    there = np.isin(np.arange(len(RANKED)), resident)
    return leaned_choice(RANKED, there, num_used, leaning)[0].tolist()


def test_without_a_bias_the_router_decides() -> None:
    assert chosen([2, 4], 3, Leaning(0.0)) == [1, 3, 0]


def test_a_resident_expert_replaces_one_that_is_not_much_better() -> None:
    assert chosen([4], 3, Leaning(0.2)) == [1, 3, 0]  # 2 + 0.8 < 3
    assert chosen([4], 3, Leaning(0.3)) == [1, 3, 4]  # 2 + 1.2 > 3
    assert chosen([2, 4], 3, Leaning(0.8)) == [1, 4, 2]  # 1 + 3.2 > 4
    assert chosen([2, 4], 3, Leaning(0.8, num_kept=2)) == [1, 3, 4]
    assert chosen([0, 2, 4], 1, Leaning(1.0)) == [1]  # the first is always kept


def test_an_expert_that_may_not_be_chosen_is_not() -> None:
    scores = np.array([3.0, -np.inf, 1.0, 0.0], np.float32)
    there = np.array([False, True, False, True])
    assert leaned_choice(scores, there, 2, Leaning(0.5))[0].tolist() == [0, 3]
    assert leaned_choice(scores, there, 3, Leaning(0.1))[0].tolist() == [0, 2, 3]


def test_where_scores_say_nothing_the_router_decides() -> None:
    there = np.array([False, False, True])
    for unusable in ([0.5, np.nan, 0.4], [-np.inf] * 3):
        scores = np.array(unusable, np.float32)
        plain, _ = leaned_choice(scores, np.zeros_like(there), 2, Leaning(1.0))
        assert leaned_choice(scores, there, 2, Leaning(1.0))[0].tolist() == plain.tolist()


@given(
    st.lists(st.tuples(st.floats(-9, 9, width=32), st.booleans()), min_size=1, max_size=12),
    st.integers(1, 12),
    st.floats(0, 1, width=32),
    st.integers(1, 4),
)
def test_a_choice_keeps_its_promises(
    experts: list[tuple[float, bool]], num_used: int, bias: float, num_kept: int
) -> None:
    scores = np.array([score for score, _ in experts], np.float32)
    resident = np.array([there for _, there in experts])
    num_used = min(num_used, len(experts))

    def choose(there: npt.NDArray[np.bool_]) -> npt.NDArray[np.int32]:
        return leaned_choice(scores, there, num_used, Leaning(bias, num_kept))[0]

    plain, leaned = choose(np.zeros_like(resident)), choose(resident)
    assert len(set(leaned.tolist())) == num_used
    assert set(plain[:num_kept].tolist()) <= set(leaned.tolist())
    assert (np.diff(scores[leaned]) <= 0).all()
    assert resident[leaned].sum() >= resident[plain].sum()
    lost = np.setdiff1d(plain, leaned)
    gained = np.setdiff1d(leaned, plain)
    assert not resident[lost].any() and resident[gained].all()
    if len(lost):  # what replaces an expert is worse by no more than the bias
        most = np.float32(bias) * (scores.max() - scores.min())
        assert scores[lost].max() - scores[gained].min() <= most * 1.001 + 1e-5


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
        expected = [expected_choice(row, resident, ids.shape[1], leaning) for row in scores]
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
