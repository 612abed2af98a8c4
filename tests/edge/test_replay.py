"""Recorded routing forced upon a running model: streamed and plain then compute the same."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from haversack import edge
from haversack.edge.planner import streamed
from haversack.edge.replay import FADING, Replay, Trace
from haversack.quant.gguf import read_geometry
from haversack.tools.models.architectures import TinyShape

LAYERS, EXPERTS, USED, STEPS = 3, 8, 2, 5


def made_trace() -> Trace:
    rng = np.random.default_rng(3)
    layers = [
        np.array([rng.permutation(EXPERTS)[:USED] for _ in range(STEPS)]) for _ in range(LAYERS)
    ]
    return Trace("made", EXPERTS, layers)


def test_steps_follow_each_other_and_begin_again(tiny_model: Any) -> None:
    trace = made_trace()
    replay = Replay(trace, read_geometry(tiny_model()))
    seen = []
    for _ in range(STEPS + 1):
        ids = np.zeros((1, USED), np.int32)
        replay(1, ids)
        seen.append(ids[0].tolist())
    assert seen[:STEPS] == trace.layers[1].tolist()
    assert seen[STEPS] == seen[0]
    replay.rewind()
    both = np.zeros((2, USED), np.int32)
    replay(1, both)
    assert both.tolist() == seen[:2]


@pytest.mark.parametrize(
    ("shape", "of_the_model"),
    [
        (TinyShape(num_hidden_layers=LAYERS + 1), "4 layers of 8 experts, 2 per token"),
        (TinyShape(num_experts=EXPERTS + 1), "3 layers of 9 experts, 2 per token"),
        (TinyShape(num_experts_per_tok=USED + 1), "3 layers of 8 experts, 3 per token"),
    ],
)
def test_a_trace_of_another_shape_is_refused(
    shape: TinyShape, of_the_model: str, tiny_model: Any
) -> None:
    of_the_trace = "the trace made has 3 layers of 8 experts, 2 per token"
    with pytest.raises(edge.PromptError, match=f"{of_the_trace}, the model {of_the_model}"):
        Replay(made_trace(), read_geometry(tiny_model(shape=shape)))


def test_deepened_layers_are_recorded_ones_at_other_moments() -> None:
    trace = made_trace()
    deep = trace.deepened(2 * LAYERS + 1)
    assert [layer.tolist() for layer in deep.layers[:LAYERS]] == [c.tolist() for c in trace.layers]
    for layer in range(LAYERS, 2 * LAYERS + 1):
        recorded = trace.layers[layer % LAYERS]
        moved = layer // LAYERS * (STEPS // 3)
        assert deep.layers[layer].tolist() == [
            *recorded[moved:].tolist(),
            *recorded[:moved].tolist(),
        ]
    assert deep.weights is None and deep.num_experts == EXPERTS


def test_a_saved_trace_is_loaded_again(tmp_path: Path) -> None:
    made = made_trace()
    weights = [np.full((STEPS, USED), layer / 10, np.float32) for layer in range(LAYERS)]
    trace = Trace("made", EXPERTS, made.layers, weights).deepened(LAYERS + 1)
    trace.save(tmp_path / "made.npz")
    loaded = Trace.load(tmp_path / "made.npz")
    assert (loaded.name, loaded.num_experts, loaded.num_steps) == ("made", EXPERTS, STEPS)
    for ours, theirs in ((trace.layers, loaded.layers), (trace.weights, loaded.weights)):
        assert ours is not None and theirs is not None
        assert all((a == b).all() for a, b in zip(ours, theirs, strict=True))


def test_a_model_may_have_fewer_layers_than_the_trace(tiny_model: Any) -> None:
    Replay(made_trace(), read_geometry(tiny_model(shape=TinyShape(num_hidden_layers=LAYERS - 1))))


@pytest.mark.parametrize(
    ("events", "words"),
    [
        ([[0, 0, 1, 8]], "it names experts besides 0 to 7"),
        ([[0, -1, 1, 2]], "a layer below 0"),
        ([[0, 0, 3, 3]], "chooses an expert twice"),
        ([0, 0, 3, 4], r"array of \(4,\)"),
    ],
)
def test_choices_that_no_router_makes_are_refused(
    events: list[Any], words: str, tmp_path: Path
) -> None:
    np.savez(tmp_path / "bad.npz", events=np.array(events), n_expert=EXPERTS)
    with pytest.raises(edge.PromptError, match=f"bad.npz is no recorded routing: .*{words}"):
        Trace.load(tmp_path / "bad.npz")


def test_weights_come_with_their_choices_where_they_were_recorded(tmp_path: Path) -> None:
    events = np.array([[0, 0, 1, 2], [0, 1, 3, 4], [1, 0, 5, 6], [1, 1, 7, 0]])
    np.savez(tmp_path / "none.npz", events=events, n_expert=EXPERTS)
    assert Trace.load(tmp_path / "none.npz").weights is None
    np.savez(tmp_path / "own.npz", events=events, weights=events[:, 2:] / 8, n_expert=EXPERTS)
    trace = Trace.load(tmp_path / "own.npz")
    assert trace.weights is not None
    for weights, chosen in zip(trace.weights, trace.layers, strict=True):
        np.testing.assert_array_equal(weights, chosen / 8)
    np.savez(tmp_path / "bad.npz", events=events, weights=events[1:, 2:], n_expert=EXPERTS)
    with pytest.raises(edge.PromptError, match=r"weights are an array of \(3, 2\), the ids of \(4"):
        Trace.load(tmp_path / "bad.npz")


def test_files_that_are_no_traces_are_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "other.npz", numbers=np.arange(3))
    np.save(tmp_path / "array.npz", np.arange(3))
    (tmp_path / "array.npz.npy").rename(tmp_path / "array.npz")
    (tmp_path / "text.npz").write_text("Once upon a time")
    (tmp_path / "empty.npz").touch()
    whole = (tmp_path / "other.npz").read_bytes()
    (tmp_path / "short.npz").write_bytes(whole[: len(whole) // 2])
    for name in ("other", "array", "text", "empty", "short"):
        found = f"{name}.npz is no recorded routing"
        needed = "no whole .npz file with the numbers events and n_expert; give a trace that"
        with pytest.raises(edge.PromptError, match=f"{found}: it is {needed}"):
            Trace.load(tmp_path / f"{name}.npz")
    with pytest.raises(
        edge.PromptError, match=r"cannot read the trace .*missing.npz: No such.*; give"
    ):
        Trace.load(tmp_path / "missing.npz")


def test_as_many_are_predicted_as_its_recall_says(tiny_model: Any) -> None:
    geometry = edge.plan(tiny_model(), ram="1TiB", ctx=64).geometry
    random = np.random.default_rng(1)
    layers = [np.array([random.permutation(EXPERTS)[:2] for _ in range(500)]) for _ in range(3)]
    replay = Replay(Trace("made", EXPERTS, layers), geometry, recall=0.7)
    known: list[list[bool]] = [[], []]
    ids = np.zeros((1, 2), np.int32)
    for step in range(500):
        replay(0, ids)
        for depth in (1, 2):
            predicted = replay.predict(depth)
            assert predicted is not None and len(set(predicted.tolist())) == 2
            known[depth - 1] += np.isin(layers[depth][step], predicted).tolist()
        assert replay.predict(0) is None
        replay(1, ids)
        replay(2, ids)
    assert [np.mean(k) for k in known] == pytest.approx([0.7, 0.7 * FADING], abs=0.04)
    assert Replay(Trace("made", EXPERTS, layers), geometry).predict(1) is None


@pytest.mark.parametrize("share", [0.0, 0.5])
def test_forced_routing_gives_the_same_logits_however_many_slots(
    share: float, tiny_model: Any, trunk_dir: Path
) -> None:
    planned = edge.plan(tiny_model(), ram="1TiB", ctx=64)
    options = edge.LoadOptions(cache_dir=trunk_dir)
    found = []
    for plan in (streamed(planned), streamed(planned, share)):
        with edge.load(plan, options=options) as model:
            own = model.logits([1, 2, 3, 4, 5, 6], prefill=1)
            model.watch_routing(Replay(made_trace(), planned.geometry))
            found.append(model.logits([1, 2, 3, 4, 5, 6], prefill=1))
            model.check_integrity()
            assert (own != found[-1]).any()
    assert (found[0] == found[1]).all()


def test_nobody_watches_routers_when_all_is_in_memory(tiny_model: Any) -> None:
    with edge.load(tiny_model(), ram="1TiB", ctx=64) as model:
        with pytest.raises(edge.HaversackError, match="no router is watched: lower --ram"):
            model.watch_routing(None)
