"""Recorded routing forced upon a running model: streamed and plain then compute the same."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from haversack import edge
from haversack.edge.planner import streamed
from haversack.tools.replay import Replay
from haversack.tools.routing import Trace

LAYERS, EXPERTS, USED, STEPS = 3, 8, 2, 5


def made_trace() -> Trace:
    rng = np.random.default_rng(3)
    layers = [
        np.array([rng.permutation(EXPERTS)[:USED] for _ in range(STEPS)]) for _ in range(LAYERS)
    ]
    return Trace("made", EXPERTS, layers)


def test_steps_follow_each_other_and_begin_again() -> None:
    trace = made_trace()
    replay = Replay(trace, LAYERS)
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


def test_a_model_with_more_layers_than_the_trace_is_refused() -> None:
    with pytest.raises(ValueError, match="has 3 layers, the model 4"):
        Replay(made_trace(), LAYERS + 1)


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
            model.watch_routing(Replay(made_trace(), LAYERS))
            found.append(model.logits([1, 2, 3, 4, 5, 6], prefill=1))
            model.check_integrity()
            assert (own != found[-1]).any()
    assert (found[0] == found[1]).all()


def test_nobody_watches_routers_when_all_is_in_memory(tiny_model: Any) -> None:
    with edge.load(tiny_model(), ram="1TiB", ctx=64) as model:
        with pytest.raises(edge.HaversackError, match="no router is watched: lower --ram"):
            model.watch_routing(None)
