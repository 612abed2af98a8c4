"""Recorded routing is what the routers chose, and comes back when it is replayed."""

import json
from pathlib import Path

import numpy as np
import pytest

from haversack import edge
from haversack.edge.planner import streamed
from haversack.edge.replay import Replay, Trace
from haversack.tools.trace import Recorder, main, record


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
    planned = streamed(edge.plan(edge.builtin_model(), ram="1TiB"))
    with edge.load(planned) as model:
        recorded = record(model, "The fox", 12)
        chosen = np.concatenate([rows for rows in recorded.decode if rows[0, 1] == 3])[:, 2:]
        np.testing.assert_array_equal(chosen, trace.layers[3])
        replay = Replay(trace, model.plan.geometry)
        ids = np.zeros((steps, 4), np.int32)
        replay(3, ids)
        np.testing.assert_array_equal(ids, chosen)


def test_a_prompt_alone_is_no_trace(tmp_path: Path) -> None:
    recorder = Recorder(2)
    recorder(0, np.zeros((5, 2), np.int32))
    with pytest.raises(ValueError, match="no token was decoded"):
        recorder.save(tmp_path / "no.npz", 8)


def test_a_wrong_path_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path / "no.gguf"), str(tmp_path / "out.npz")]) == 2
    assert "no.gguf does not exist" in capsys.readouterr().err
