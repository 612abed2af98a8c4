"""Foreseen choices: a router's own arithmetic by example, and routers learnt from real graphs."""

from typing import Any

import numpy as np
import pytest

from haversack import edge
from haversack.devices.ggml import GraphNode
from haversack.edge.planner import streamed
from haversack.offload.predictor import Router
from haversack.offload.seam import Seam
from haversack.tools.architectures import ARCHITECTURES

EYE = np.eye(8, dtype=np.float32)
INPUTS = np.array([0, 8, 7, 6, 5, 4, 3, 2], np.float32)


def test_the_likeliest_come_first_and_as_many_more_as_asked() -> None:
    router = Router(EYE, num_used=2)
    assert router.likeliest(INPUTS).tolist() == [1, 2]
    assert router.likeliest(INPUTS, extra=2).tolist() == [1, 2, 3, 4]
    assert len(router.likeliest(INPUTS, extra=99)) == 8


def test_a_bias_on_scores_counts() -> None:
    bias = np.array([9, 0, 0, 0, 0, 0, 0, 0], np.float32)
    assert Router(EYE, 2, score_bias=bias).likeliest(INPUTS).tolist() == [0, 1]


def test_a_bias_on_the_choice_is_added_to_probabilities() -> None:
    bias = np.array([0, 0, 0, 0, 0, 0, 0, 0.9], np.float32)
    softmax = Router(EYE, 2, choice_bias=bias).likeliest(INPUTS)
    assert softmax.tolist() == [7, 1]
    sigmoid = Router(EYE, 2, choice_bias=bias, sigmoid=True).likeliest(INPUTS)
    assert sigmoid.tolist() == [7, 1]
    scarce = np.array([0, 0, 0, 0, 0, 0, 0, 0.1], np.float32)
    assert Router(EYE, 2, choice_bias=scarce, sigmoid=True).likeliest(INPUTS).tolist() == [1, 2]


def test_only_the_best_groups_are_chosen_from() -> None:
    """Groups of two: 0 and 8, 7 and 6, 5 and 4, 3 and 2. The best two are the second and the
    third, as sigmoids of large scores are all but equal."""
    router = Router(EYE, 4, sigmoid=True, num_groups=4, groups_used=2)
    assert sorted(router.likeliest(INPUTS).tolist()) == [2, 3, 4, 5]


@pytest.mark.parametrize("architecture", sorted(ARCHITECTURES))
def test_a_layers_own_input_foretells_its_own_choice(
    architecture: str, tiny_model: Any, trunk_dir: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The learnt router, given what the layer's own router was given, must choose the same."""
    compared = []
    choose = Seam._choose

    def watched(seam: Seam, node: int) -> bool:
        result = choose(seam, node)
        choice = GraphNode(node)
        layer = int(choice.name.rpartition("-")[2])
        inputs = seam._predictor.learn(layer, choice)
        if inputs is not None and len(seam._ids) == 1:
            foreseen = seam._predictor.likeliest(layer, inputs.array(np.float32)[0, 0])
            if foreseen is not None:
                compared.append(set(foreseen.tolist()) == set(seam._ids[0].tolist()))
        return result

    monkeypatch.setattr(Seam, "_choose", watched)
    planned = streamed(edge.plan(tiny_model(architecture), ram="1GiB", ctx=64, threads=1), 0.0)
    options = edge.LoadOptions(cache_dir=trunk_dir, native=False)
    with edge.load(planned, options=options) as model:
        model.logits([1, 2, 3, 4, 5, 6], prefill=1)
    assert len(compared) >= 5 and all(compared)
