"""Recorded routing is what the routers chose, and comes back when it is replayed."""

import json
from pathlib import Path

import numpy as np
import pytest

from haversack import edge
from haversack.edge.planner import streamed
from haversack.edge.replay import Replay, Trace
from haversack.tools.routing.trace import Recorder, main, record


def test_a_trace_is_written_read_and_replayed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Replaying a model's own choices changes nothing."""
    out = tmp_path / "own.npz"
    assert main([str(edge.builtin_model()), str(out), "-p", "The fox", "-n", "12"]) == 0
    steps = json.loads(capsys.readouterr().out)["steps"]
    trace = Trace.load(out)
    assert (trace.num_experts, len(trace.layers), len(trace.layers[0])) == (32, 8, steps)
    with np.load(out) as data:
        assert data["prefill_events"].shape[1] == 2 + 4
        assert data["prefill_weights"].shape == (len(data["prefill_events"]), 4)
        assert data["weights"].dtype == np.float32
    planned = streamed(edge.plan(edge.builtin_model(), ram="1TiB"))
    with edge.load(planned) as model:
        recorded = record(model, "The fox", 12)
        of_layer = [noted for noted in recorded.decode if noted.rows[0, 1] == 3]
        chosen = np.concatenate([noted.rows for noted in of_layer])[:, 2:]
        np.testing.assert_array_equal(chosen, trace.layers[3])
        weights = np.concatenate([w for noted in of_layer if (w := noted.weights) is not None])
        assert trace.weights is not None and 0 < weights.min() < weights.max() < 1
        np.testing.assert_allclose(weights, trace.weights[3], rtol=1e-4)
        replay = Replay(trace, model.plan.geometry)
        ids = np.zeros((steps, 4), np.int32)
        replay(3, ids)
        np.testing.assert_array_equal(ids, chosen)


def test_weights_stay_with_their_rows(tmp_path: Path) -> None:
    """Two layers, a prompt of two tokens and two tokens more; a weight is a tenth of its id."""
    recorder = Recorder(2)
    ids = np.arange(16, dtype=np.int32).reshape(8, 2)
    for layer, first, num_tokens in [(0, 0, 2), (1, 2, 2), (0, 4, 1), (1, 5, 1), (0, 6, 1)]:
        chosen = ids[first : first + num_tokens]
        recorder.note(layer, chosen, (chosen / 10).astype(np.float32))
    recorder.save(tmp_path / "made.npz", 16)
    with np.load(tmp_path / "made.npz") as data:
        assert data["prefill_events"].tolist() == [
            [0, 0, 0, 1], [0, 1, 4, 5], [1, 0, 2, 3], [1, 1, 6, 7]
        ]  # fmt: skip
        for prefix in ("", "prefill_"):
            rows, weights = data[f"{prefix}events"], data[f"{prefix}weights"]
            np.testing.assert_allclose(weights, rows[:, 2:] / 10, rtol=1e-6)


def test_weights_that_no_router_gave_are_left_out(tmp_path: Path) -> None:
    recorder = Recorder(1)
    recorder.note(0, np.array([[1, 2]], np.int32), None)
    recorder.save(tmp_path / "made.npz", 8)
    assert Trace.load(tmp_path / "made.npz").weights is None


def test_a_prompt_alone_is_no_trace(tmp_path: Path) -> None:
    recorder = Recorder(2)
    recorder.note(0, np.zeros((5, 2), np.int32), None)
    with pytest.raises(ValueError, match="no token was decoded"):
        recorder.save(tmp_path / "no.npz", 8)


def test_a_wrong_path_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path / "no.gguf"), str(tmp_path / "out.npz")]) == 2
    assert "no.gguf does not exist" in capsys.readouterr().err
