"""Routing: hits counted again on the recorded traces, and small cases by hand."""

import csv

import numpy as np
import pytest

from haversack.edge.replay import Trace
from haversack.tools.routing.measures import (
    TRACES,
    belady_hits,
    expert_load,
    hit_rates,
    load_entropy,
    lru_hits,
    prediction_recall,
    recorded_traces,
    step_reuse,
)

REUSE = {
    "qwen3-30b-a3b": 0.380,
    "gemma4-26b-a4b": 0.357,
    "gptoss-120b": 0.179,
    "olmoe-1b-7b": 0.435,
}


@pytest.fixture(scope="module")
def traces() -> dict[str, Trace]:
    return {trace.name: trace for trace in recorded_traces()}


def test_recorded_hits_are_counted_again(traces: dict[str, Trace]) -> None:
    with (TRACES / "hit_rates.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 3 * sum(len(trace.layers) for trace in traces.values())
    for row in rows[::13] + rows[-3:]:
        choice, capacity = traces[row["trace"]].layers[int(row["layer"])], int(row["cache_experts"])
        assert lru_hits(choice, capacity) == int(row["lru_hits"]), row
        assert belady_hits(choice, capacity) == int(row["belady_hits"]), row


def test_recorded_models_reuse_what_is_known_of_them(traces: dict[str, Trace]) -> None:
    for name, trace in traces.items():
        reuse = float(np.mean([step_reuse(choice) for choice in trace.layers]))
        assert reuse == pytest.approx(REUSE[name.split("_")[0]], abs=0.002), name


def test_hit_rates_of_a_whole_trace(traces: dict[str, Trace]) -> None:
    olmoe = traces["olmoe-1b-7b_top8_299tok"]
    assert (olmoe.num_experts, len(olmoe.layers)) == (64, 16)
    lru, belady = hit_rates(olmoe, 0.25)
    assert (round(lru, 3), round(belady, 3)) == (0.571, 0.747)


def test_caches_by_hand() -> None:
    choice = np.array([[0, 1], [2, 0], [1, 0]])
    assert lru_hits(choice, 2) == 1  # 0 1 | 2 evicts 0, 0 evicts 1 | 1 evicts 2, 0 hits
    assert belady_hits(choice, 2) == 2  # 2 evicts 1: 0 hits | 1 evicts 2, 0 hits
    assert lru_hits(choice, 3) == belady_hits(choice, 3) == 3
    assert step_reuse(choice) == 0.5


def test_load_is_measured_against_the_fair_share() -> None:
    load = expert_load(np.array([[0, 1], [0, 2]]), num_experts=4)
    assert load.tolist() == [2, 1, 1, 0]
    assert load_entropy(np.ones(8)) == pytest.approx(1)
    assert load_entropy(np.array([8.0, 0, 0, 0])) == 0


def test_recall_counts_what_was_predicted() -> None:
    router = np.eye(4, dtype=np.float32)
    inputs = np.array([[4, 3, 2, 1], [1, 2, 3, 4]], np.float32)
    choice = np.array([[0, 1], [3, 0]])
    assert prediction_recall(inputs, router, choice, extra=0) == 0.75
    assert prediction_recall(inputs, router, choice, extra=2) == 1
