"""Foreseen choices: a router's own arithmetic by example, and routers learnt from real graphs."""

from contextlib import closing
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from haversack import edge
from haversack.devices.ggml import GraphNode
from haversack.devices.llama import ContextShape, LlamaContext, LlamaModel
from haversack.edge.planner import streamed
from haversack.offload.predictor import Router, _ancestors, _router, chosen_probabilities
from haversack.offload.seam import Seam
from haversack.tools.models.architectures import ARCHITECTURES

EYE = np.eye(8, dtype=np.float32)
INPUTS = np.array([0, 8, 7, 6, 5, 4, 3, 2], np.float32)


def test_the_likeliest_come_first_and_as_many_more_as_asked() -> None:
    router = Router(EYE, num_used=2)
    assert router.likeliest(INPUTS).tolist() == [1, 2]
    assert router.likeliest(INPUTS, extra=2).tolist() == [1, 2, 3, 4]
    assert len(router.likeliest(INPUTS, extra=99)) == 8


def product(matrix: npt.NDArray[np.float32], rows: npt.NDArray[np.float32]) -> Any:
    return rows @ matrix.T


def test_of_a_batch_those_are_popular_that_two_tokens_would_choose() -> None:
    router = Router(EYE, num_used=2)
    rows = np.zeros((4, 8), np.float32)
    for row, chosen in enumerate([(1, 2), (2, 5), (2, 1), (6, 7)]):
        rows[row, list(chosen)] = 1
    assert router.popular(rows, product).tolist() == [2, 1]


@pytest.mark.parametrize("tokens", [2, 128, 129, 512])
def test_of_a_large_batch_some_tokens_are_asked(tokens: int) -> None:
    rows, asked = np.tile(INPUTS, (tokens, 1)), []

    def counting(matrix: npt.NDArray[np.float32], rows: npt.NDArray[np.float32]) -> Any:
        asked.append(len(rows))
        return product(matrix, rows)

    assert sorted(Router(EYE, num_used=2).popular(rows, counting).tolist()) == [1, 2]
    assert min(tokens, 64) <= asked[0] <= 128


def test_groups_and_biases_count_for_each_token_of_a_batch() -> None:
    bias = np.array([0, 0, 0, 0, 0, 0, 0, 0.9], np.float32)
    router = Router(EYE, 4, choice_bias=bias, sigmoid=True, num_groups=4, groups_used=2)
    rows = np.stack([np.roll(INPUTS, 2 * shift) for shift in range(4)])
    one_by_one = np.concatenate([router.likeliest(row) for row in rows])
    uses = np.bincount(one_by_one, minlength=8)
    assert sorted(router.popular(rows, product).tolist()) == np.flatnonzero(uses >= 2).tolist()


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


class ByNumpy:
    """A hook that compares `chosen_probabilities` with weight times input, and a softmax or
    sigmoids, by numpy. The input is taken when the product is made: the memory of gemma4's last
    one is used again before the choice."""

    callback = None

    def __init__(self) -> None:
        self.inputs: dict[int, npt.NDArray[np.float64]] = {}
        self.compared: list[tuple[int, bool]] = []  # tokens, and whether by sigmoids

    def on_node(self, node: int, ask: bool, _: object) -> bool:
        shown = GraphNode(node)
        name, _, layer = shown.name.partition("-")
        if ask:
            return name in ("ffn_moe_logits", "ffn_moe_topk")
        if name == "ffn_moe_logits":
            self.inputs[int(layer)] = shown.source(1).array(np.float32)[0].astype(np.float64)
        else:
            self.compare(self.inputs[int(layer)], shown)
        return True

    def compare(self, inputs: npt.NDArray[np.float64], choice: GraphNode) -> None:
        router, found = _router(choice, _ancestors(choice)), chosen_probabilities(choice)
        assert router is not None and found is not None and found.dtype == np.float32
        scores = inputs @ router.weight.T
        powers = np.exp(scores if router.score_bias is None else scores + router.score_bias)
        total = 1 + powers if router.sigmoid else powers.sum(axis=1, keepdims=True)
        expected = np.take_along_axis(powers / total, choice.array(np.int32)[0], axis=1)
        np.testing.assert_allclose(found, expected, rtol=1e-3)
        self.compared.append((len(found), router.sigmoid))

    def end_graph(self, computed: bool) -> BaseException | None:
        return None


@pytest.mark.parametrize("architecture", sorted(ARCHITECTURES))
def test_the_chosen_have_the_probabilities_that_their_router_gives(
    architecture: str, tiny_model: Any
) -> None:
    hook = ByNumpy()
    with closing(LlamaModel(tiny_model(architecture))) as model:
        shape = ContextShape(ctx_tokens=256, batch_tokens=128, threads=1)
        with closing(LlamaContext(model, shape, hook)) as context:
            context.decode([1, 2, 3, 4])
            context.decode([5])
    of_sigmoids = architecture in ("deepseek2", "glm4moe", "lfm2moe")
    assert set(hook.compared) == {(4, of_sigmoids), (1, of_sigmoids)}
