"""The seam refuses to multiply what is not there, and stops the graph without losing the error.

Here all of it is Python; `test_native_seam.py` has our own library in front.
"""

from typing import Any

import numpy as np
import pytest

from haversack import edge
from haversack.devices.ggml import GraphNode
from haversack.edge.planner import streamed
from haversack.offload.seam import Seam
from haversack.offload.store import ExpertStore
from haversack.tools.models.architectures import TinyShape


@pytest.fixture
def model(tiny_model: Any, trunk_dir: Any) -> Any:
    path = tiny_model("qwen3moe", shape=TinyShape(num_experts=16))
    planned = streamed(edge.plan(path, ram="1GiB", ctx=64, threads=1), 0.0)
    options = edge.LoadOptions(cache_dir=trunk_dir, native=False)
    with edge.load(planned, options=options) as loaded:
        yield loaded


def test_no_product_runs_over_slots_that_are_not_filled(
    model: edge.Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When a wait fails, the node that was about to multiply is switched off before it runs."""
    ops_after_failure: list[int] = []
    set_op = GraphNode.set_op

    def watched(node: GraphNode, op: int) -> None:
        set_op(node, op)
        ops_after_failure.append(op)

    def failing(*_: Any) -> None:
        ops_after_failure[:-1] = []
        raise edge.StorageError(5, "input/output error")

    monkeypatch.setattr(GraphNode, "set_op", watched)
    monkeypatch.setattr(ExpertStore, "groups", failing)
    with pytest.raises(edge.StorageError, match="input/output error"):
        model.logits([1], prefill=1)
    assert ops_after_failure == [0]  # GGML_OP_NONE, and nothing after it
    monkeypatch.undo()
    model.check_integrity()
    assert np.isfinite(model.logits([1], prefill=1)).all()


@pytest.mark.parametrize("prefill", [1, 5])
def test_any_exception_in_the_callback_reaches_the_caller(
    prefill: int, model: edge.Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    class StrangeError(Exception):
        pass

    def strange(*_: Any) -> bool:
        raise StrangeError("from the callback")

    expected = model.logits([1, 2, 3, 4, 5], prefill=prefill)
    monkeypatch.setattr(Seam, "_choose", strange)
    with pytest.raises(StrangeError, match="from the callback"):
        model.logits([1, 2, 3, 4, 5], prefill=prefill)
    monkeypatch.undo()
    model.check_integrity()
    np.testing.assert_array_equal(model.logits([1, 2, 3, 4, 5], prefill=prefill), expected)


def test_a_product_with_another_choice_is_refused(
    model: edge.Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    choose = Seam._choose

    def misled(seam: Seam, node: int) -> bool:
        went_on = choose(seam, node)
        seam._choice = 12345
        return went_on

    monkeypatch.setattr(Seam, "_choose", misled)
    with pytest.raises(edge.BindingError, match="another choice of experts"):
        model.logits([1, 2], prefill=2)


@pytest.mark.parametrize("prefill", [1, 3])
def test_a_graph_that_hides_a_product_is_refused(
    prefill: int, model: edge.Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the seam does not see, llama.cpp would multiply with whatever lies in the slots."""
    prepare = Seam._prepare

    def overlooking(seam: Seam, address: int, layer: Any, index: int) -> bool:
        went_on = prepare(seam, address, layer, index)
        seam._num_seen -= layer.layer == 1 and index == 2
        return went_on

    monkeypatch.setattr(Seam, "_prepare", overlooking)
    with pytest.raises(edge.BindingError, match="8 of 9 expert products"):
        model.logits([1, 2, 3], prefill=prefill)
    monkeypatch.undo()
    assert np.isfinite(model.logits([1, 2, 3], prefill=prefill)).all()
