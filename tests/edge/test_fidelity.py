"""Fidelity: what a mode means for a model, and where it stays exact."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from haversack import edge
from haversack.cache.precision import Thresholds, fit, relative_weight
from haversack.cache.routing import Leaning
from haversack.devices.errors import BudgetError, HaversackError, ModelFileError, PromptError
from haversack.edge.fidelity import BALANCED, FAST, Fidelity
from haversack.edge.model_plan import Plan
from haversack.edge.planner import streamed, with_drafts
from haversack.quant.gguf import read_geometry
from haversack.quant.importance import ActivationSums
from haversack.quant.records import importance_path, low_path
from haversack.tools.models.architectures import TinyShape
from haversack.tools.routing.measures import recorded_traces

TinyModel = Callable[..., Path]
SMALL = TinyShape(num_hidden_layers=2, num_experts=8, vocab_size=64)
DENSE = Path(__file__).parents[1] / "data/models/tales-twin.gguf"


@pytest.fixture
def model(tiny_model: TinyModel) -> Path:
    return tiny_model(shape=SMALL, expert_type="Q8_0")


@pytest.fixture
def low_from(tiny_model: TinyModel) -> Path:
    return tiny_model(shape=SMALL, expert_type="Q2_K")


def tight(model: Path) -> Plan:
    return streamed(edge.plan(model, ram="1GiB", ctx=256, threads=1), 0.7)


def calibrate(model: Path, folder: Path, weights: np.ndarray) -> None:
    """Leave the routers' weights that a calibration would have seen."""
    sums = ActivationSums(importance_path(low_path(read_geometry(model), folder)), "a text")
    for start in range(0, len(weights), 32):  # it keeps a sample of more rows
        sums.add_weights(weights[start : start + 32].astype(np.float32))
    sums.is_whole = True
    sums.save()


# ------------------------------------------------------------------ wrong values
@pytest.mark.parametrize(
    ("fidelity", "said"),
    [
        ({"mode": "best"}, r"--fidelity is 'best': give exact, balanced, fast"),
        ({"mode": "fast", "low_share": 1.5}, r"--low-share is 1.5: give a number from 0 to 1"),
        ({"mode": "fast", "skip_share": -1}, r"--skip-share is -1: give a number from 0 to 1"),
        ({"mode": "fast", "low_share": float("nan")}, r"--low-share is nan: give"),
        ({"mode": "fast", "low_share": 0.9, "skip_share": 0.2}, r"more than 1 together: lower"),
        ({"low_share": 0.5}, r"exact has no low copies: give --fidelity"),
        ({"route_bias": 1.5}, r"--route-bias is 1.5: give a number from 0 to 1"),
        ({"mode": "fast", "route_bias": float("nan")}, r"--route-bias is nan: give"),
    ],
)
def test_wrong_values_are_told(fidelity: dict[str, object], said: str) -> None:
    with pytest.raises(PromptError, match=said):
        Fidelity(**fidelity)  # type: ignore[arg-type]


def test_without_low_copies_it_says_what_to_do(model: Path, tmp_path: Path) -> None:
    model = Path(shutil.copy(model, tmp_path / "m 1.gguf"))
    with pytest.raises(
        HaversackError, match=r"run `haversack prepare '.*m 1.gguf'`.*--low"
    ) as caught:
        Fidelity(BALANCED).applied(tight(model), tmp_path)
    assert caught.value.exit_code == 2
    with pytest.raises(edge.HaversackError, match="needs low copies"):
        edge.load(model, "1GiB", options=edge.LoadOptions(cache_dir=tmp_path, fidelity="fast"))


def test_a_gguf_of_another_model_is_refused(model: Path, tiny_model: TinyModel) -> None:
    with pytest.raises(ModelFileError, match="give a smaller GGUF of the same model"):
        Fidelity(FAST, tiny_model("olmoe")).applied(tight(model), Path())


# -------------------------------------------------------------------------- plans
def test_exact_changes_nothing(model: Path, low_from: Path, tmp_path: Path) -> None:
    planned = tight(model)
    assert Fidelity().applied(planned, tmp_path) is planned
    with pytest.raises(PromptError, match=r"--low-from is .* exact reads no low copies: give"):
        Fidelity(low_from=low_from)
    assert planned.fidelity == "exact" and planned.precision is None


@pytest.mark.parametrize(("mode", "low_type", "expected"), [
    (BALANCED, "Q2_K", Thresholds(0.6, 0.95)),
    (BALANCED, "Q4_K", Thresholds(0.5, 0.93)),
    (FAST, "Q2_K", Thresholds(0.45, 0.85)),
])  # fmt: skip
def test_without_a_calibration_thresholds_depend_on_the_bytes(
    model: Path, tiny_model: TinyModel, mode: str, low_type: str, expected: Thresholds,
    tmp_path: Path,
) -> None:  # fmt: skip
    low_from = tiny_model(shape=SMALL, expert_type=low_type)
    planned = Fidelity(mode, low_from).applied(tight(model), tmp_path)
    assert planned.precision is not None
    assert (planned.fidelity, planned.precision.thresholds) == (mode, expected)
    assert 0 < planned.precision.batch_low_share < 0.5
    assert planned.to_dict()["fidelity"] == mode and f"{mode}: low copies are" in str(planned)


def test_a_plan_of_two_precisions_adds_up(model: Path, low_from: Path, tmp_path: Path) -> None:
    exact = tight(model)
    planned = Fidelity(BALANCED, low_from).applied(exact, tmp_path)
    planned.budget().check_integrity()
    assert planned.ram_bytes == exact.ram_bytes >= planned.planned_bytes
    assert planned.slot_bytes == sum(pool.num_bytes for pool in planned.pools)
    assert planned.floor_bytes > exact.floor_bytes
    (pool,) = planned.pools
    assert pool.least_low_slots == 4  # two experts a token, twice


def test_below_the_floor_of_two_precisions(model: Path, low_from: Path, tmp_path: Path) -> None:
    exact = edge.plan(model, ram=edge.plan(model, ram="1GiB").floor_bytes)
    with pytest.raises(BudgetError, match=r"two precisions needs at least .*--ram.*exact"):
        Fidelity(BALANCED, low_from).applied(exact, tmp_path)


# ------------------------------------------------------------------- calibrated
def test_thresholds_are_fitted_to_what_the_routers_weigh(
    model: Path, low_from: Path, tmp_path: Path
) -> None:
    weights = np.random.default_rng(0).dirichlet([0.5] * 4, 1000)
    calibrate(model, tmp_path, weights)
    chosen = Fidelity(FAST, low_from, low_share=0.3, skip_share=0.1)
    for fidelity in (Fidelity(FAST, low_from), chosen):
        planned = fidelity.applied(tight(model), tmp_path)
        assert planned.precision is not None
        expected = fit(weights.astype(np.float32), fidelity.shares.low, fidelity.shares.skip)
        assert planned.precision.thresholds == expected
    assert (chosen.shares.low, chosen.shares.skip) == (0.3, 0.1)


def test_even_weights_stay_exact_and_say_so(
    model: Path, low_from: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    calibrate(model, tmp_path, np.full((100, 4), 0.25))
    exact = tight(model)
    assert Fidelity(BALANCED, low_from).applied(exact, tmp_path) is exact
    assert "weigh about the same and balanced would gain little, so it runs exact" in caplog.text
    own = Fidelity(BALANCED, low_from, low_share=0.3).applied(exact, tmp_path)
    assert own.fidelity == BALANCED  # shares that are given are used


def test_without_a_calibration_the_first_rows_are_fitted_to(
    model: Path, low_from: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    weights = np.random.default_rng(0).dirichlet([0.5] * 4, 1000).astype(np.float32)
    fidelity = Fidelity(FAST, low_from, low_share=0.3, skip_share=0.1)
    precision = fidelity.applied(tight(model), tmp_path).precision
    assert precision is not None and precision.fitted is not None
    assert precision.fitted(weights) == fit(weights, 0.3, 0.1)
    plain = Fidelity(FAST, low_from).applied(tight(model), tmp_path).precision
    assert plain is not None and plain.fitted is not None and "exact" not in caplog.text
    assert plain.fitted(np.full((100, 4), 0.25, np.float32)) == Thresholds()
    assert "so from now on it runs exact" in caplog.text


@pytest.mark.parametrize(
    ("name", "is_even"), [("gptoss", True), ("qwen3", False), ("gemma4", False)]
)
def test_recorded_models(
    name: str, is_even: bool, model: Path, low_from: Path, tmp_path: Path
) -> None:
    trace = next(trace for trace in recorded_traces() if trace.name.startswith(name))
    assert trace.weights is not None
    calibrate(model, tmp_path, np.concatenate(trace.weights))
    for mode in (BALANCED, FAST):
        planned = Fidelity(mode, low_from).applied(tight(model), tmp_path)
        assert (planned.precision is None) == is_even


def test_what_is_in_memory_stays_exact(
    model: Path, low_from: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    planned = edge.plan(model, ram="1GiB")
    assert Fidelity(FAST, low_from).applied(planned, tmp_path) is planned
    assert "all experts fit into memory" in caplog.text
    dense = edge.plan(DENSE, ram="1GiB")
    assert Fidelity(FAST).applied(dense, tmp_path) is dense


def test_fast_asks_more_than_balanced() -> None:
    weights = np.random.default_rng(0).dirichlet([1.0] * 8, 1000).astype(np.float32)
    balanced, fast = (
        fit(weights, s.low, s.skip) for s in (Fidelity(BALANCED).shares, Fidelity(FAST).shares)
    )
    assert fast.low < balanced.low and fast.skip < balanced.skip
    assert relative_weight(weights, balanced) < relative_weight(weights, fast)


# ----------------------------------------------------- routers that lean to slots
def test_a_bias_is_part_of_the_plan_in_any_mode(
    model: Path, low_from: Path, tmp_path: Path
) -> None:
    exact = tight(model)
    for fidelity in (Fidelity(route_bias=0.1), Fidelity(FAST, low_from, route_bias=0.1)):
        planned = fidelity.applied(exact, tmp_path)
        assert planned.leaning == Leaning(0.1, num_kept=1)
        assert planned.to_dict()["route_bias"] == 0.1
        assert (planned.precision is None) == (fidelity.mode == "exact")
    with_drafts_off = with_drafts(Fidelity(route_bias=0.1).applied(exact, tmp_path), None, True)
    assert with_drafts_off.draft_bytes == 0 and with_drafts_off.leaning == Leaning(0.1)


def test_where_a_bias_changes_nothing_it_is_told(
    model: Path, tiny_model: TinyModel, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    resident, one = edge.plan(model, ram="1GiB"), replace(SMALL, num_experts_per_tok=1)
    assert Fidelity(route_bias=0.1).applied(resident, tmp_path) is resident
    assert "--route-bias changes nothing, no expert is streamed" in caplog.text
    chooses_one = tight(tiny_model(shape=one))
    assert Fidelity(route_bias=0.1).applied(chooses_one, tmp_path) is chooses_one
    assert "its routers choose one expert, which stays" in caplog.text


def test_a_model_counts_what_was_chosen_for_its_place(
    model: Path, trunk_dir: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Also where llama.cpp plans no pass of few rows, because there are more sequences."""
    planned = streamed(edge.plan(model, "1GiB", ctx=256, threads=1, sequences=8), 0.7)
    spent = list[edge.Stats]()
    for bias in (0.0, 0.5):
        fidelity = edge.Fidelity(route_bias=bias)
        options = edge.LoadOptions(cache_dir=trunk_dir, fidelity=fidelity, warm_start=False)
        with edge.load(planned, options=options) as loaded:
            loaded.logits(list(range(1, 60)), prefill=20)
            spent.append(loaded.stats())
    assert "cannot lean" not in caplog.text
    assert spent[0].uses_leaned == 0 < spent[1].uses_leaned
    assert spent[1].hit_rate > spent[0].hit_rate
