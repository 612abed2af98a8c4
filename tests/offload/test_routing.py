"""Routers learnt from real graphs choose as the graph does; choices can be watched and forced."""

from contextlib import closing
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from haversack.devices.errors import HaversackError
from haversack.devices.ggml import GraphNode, is_choice
from haversack.devices.llama import ContextShape, LlamaContext, OnNode
from haversack.devices.llama_model import LlamaModel
from haversack.edge.plain_llama import PlainLlama
from haversack.offload.engine import open_resident
from haversack.offload.routing import Router, chosen_probabilities, router_input
from haversack.tools.models.architectures import ARCHITECTURES, TinyShape

TOKENS = [1 + 7 * i % 200 for i in range(40)]
OF_SIGMOIDS = ("deepseek2", "glm4moe", "lfm2moe", "smallthinker")
# Their routers are given another tensor than the experts, whose memory may be in use again when the
# choice is computed; that depends on the build of llama.cpp.
NOT_ALWAYS_RIGHT = ("gemma4", "smallthinker")
PROBABILITIES_COME_LATER = ("llama4",)
GROUPS = {"expert_group_count": 4, "expert_group_used_count": 2}


def watched(path: Any, on_node: OnNode, batches: list[list[int]]) -> None:
    """Have llama.cpp compute `batches` with the model at `path`, and show its nodes. Raises what
    `on_node` does."""
    errors = list[BaseException]()

    def caught(address: int, ask: bool, data: object) -> bool:
        try:
            return on_node(address, ask, data)
        except BaseException as error:  # it may not cross the C frame
            errors.append(error)
            return not ask

    shape = ContextShape(ctx_tokens=256, batch_tokens=128, threads=1)
    with closing(LlamaModel(path)) as model:
        with closing(LlamaContext(model, shape, on_node=caught)) as context:
            for batch in batches:
                context.decode(batch)
                if errors:
                    raise errors[0]


class Learning:
    """Learns the router of each layer from the first token's choice, and compares what it says of
    later tokens with what is chosen."""

    def __init__(self) -> None:
        self.routers: dict[int, Router | None] = {}
        self.num_compared = self.num_right = 0

    def on_node(self, address: int, ask: bool, _: object) -> bool:
        if not is_choice(address):
            return not ask
        if not ask:
            self._choice(GraphNode(address))
        return True

    def _choice(self, choice: GraphNode) -> None:
        layer = int(choice.name.rpartition("-")[2])
        if layer not in self.routers:
            self.routers[layer] = Router.learn(choice)
        elif (router := self.routers[layer]) is not None:
            self._compare(router, choice)

    def _compare(self, router: Router, choice: GraphNode) -> None:
        inputs = router_input(choice)
        assert inputs is not None
        chosen = choice.array(np.int32)[0]
        for row, experts in zip(inputs.array(np.float32)[0], chosen, strict=True):
            likeliest = router.likeliest(row, extra=3)
            self.num_right += set(likeliest[: len(experts)].tolist()) == set(experts.tolist())
            assert len(set(likeliest.tolist())) == len(experts) + 3
            self.num_compared += 1


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_layers_own_input_tells_its_own_choice(architecture: str, tiny_model: Any) -> None:
    learning = Learning()
    watched(tiny_model(architecture), learning.on_node, [[token] for token in TOKENS[:8]])
    is_always_right = learning.num_right == 7 * len(learning.routers)
    assert is_always_right or architecture in NOT_ALWAYS_RIGHT


@pytest.mark.parametrize("architecture", ["deepseek2", "glm4moe", "lfm2moe"])
def test_groups_of_experts_count(
    architecture: str, tiny_model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    entry = ARCHITECTURES[architecture]
    monkeypatch.setitem(ARCHITECTURES, architecture, replace(entry, keys={**entry.keys, **GROUPS}))
    shape = TinyShape(num_experts=16, num_experts_per_tok=4)
    grouped = tiny_model(architecture, shape=shape, seed=100)  # no other test's model
    names, learning = set[str](), Learning()

    def on_node(address: int, ask: bool, data: object) -> bool:
        names.add(GraphNode(address).name.partition("-")[0])
        return learning.on_node(address, ask, data)

    watched(grouped, on_node, [[token] for token in TOKENS[:8]])
    assert "ffn_moe_group_topk" in names
    assert learning.num_right == 7 * len(learning.routers) > 0


def test_the_next_likeliest_are_those_of_the_next_scores(tiny_model: Any) -> None:
    compared, scores = list[bool](), list[npt.NDArray[np.float32]]()

    def on_node(address: int, ask: bool, _: object) -> bool:
        node = GraphNode(address)
        is_product = node.name.startswith("ffn_moe_logits-")
        if ask:
            return is_product or is_choice(address)
        if is_product:
            scores.append(node.array(np.float32)[0, 0].copy())
        elif is_choice(address):
            router, inputs = Router.learn(node), router_input(node)
            assert router is not None and inputs is not None
            row = inputs.array(np.float32)[0, 0]
            assert router.likeliest(row, 99).tolist() == np.argsort(-scores[-1]).tolist()
            compared.append(True)
        return True

    watched(tiny_model("qwen3moe"), on_node, [TOKENS[:1]])
    assert len(compared) == 3


# -------------------------------------------------------------- probabilities
class ByNumpy:
    """Compares `chosen_probabilities` with weight times input, and a softmax or sigmoids, by numpy.
    The input is taken when the product is made: the memory of gemma4's last one is used again
    before the choice."""

    def __init__(self, architecture: str) -> None:
        self._of_sigmoids = architecture in OF_SIGMOIDS
        self._come_later = architecture in PROBABILITIES_COME_LATER
        self._scores: dict[int, npt.NDArray[np.float64]] = {}
        self.num_tokens = list[int]()

    def on_node(self, address: int, ask: bool, _: object) -> bool:
        node = GraphNode(address)
        name, _, layer = node.name.partition("-")
        if ask:
            return name in ("ffn_moe_logits", "ffn_moe_probs", "ffn_moe_topk")
        if name == "ffn_moe_logits":
            inputs = node.source(1).array(np.float32)[0].astype(np.float64)
            self._scores[int(layer)] = inputs @ node.source(0).array(np.float32)[0].T
        elif name == "ffn_moe_probs":
            if node.is_sum:  # a bias on scores, whose softmax comes later
                self._scores[int(layer)] += node.source(1).array(np.float32)[0]
        else:
            self._compare(self._scores[int(layer)], node)
        return True

    def _compare(self, scores: npt.NDArray[np.float64], choice: GraphNode) -> None:
        found = chosen_probabilities(choice)
        self.num_tokens.append(len(scores))
        if self._come_later:
            assert found is None
            return
        assert found is not None and found.dtype == np.float32
        powers = np.exp(scores[-len(found) :])  # the last layer may choose for the last row alone
        total = 1 + powers if self._of_sigmoids else powers.sum(axis=1, keepdims=True)
        expected = np.take_along_axis(powers / total, choice.array(np.int32)[0], axis=1)
        np.testing.assert_allclose(found, expected, rtol=1e-3)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_chosen_have_the_probabilities_that_their_router_gives(
    architecture: str, tiny_model: Any
) -> None:
    compared = ByNumpy(architecture)
    watched(tiny_model(architecture), compared.on_node, [[1, 2, 3, 4], [5]])
    assert set(compared.num_tokens) == {4, 1}


# ------------------------------------------------------------ watch and force
@pytest.mark.parametrize("prefill", [1, 30])
def test_a_watcher_sees_every_choice_and_changes_nothing(
    prefill: int, tiny_model: Any, open_model: Any
) -> None:
    path, seen = tiny_model("qwen3moe"), list[tuple[int, tuple[int, ...]]]()
    model = open_model(path)
    model.engine.watch(lambda layer, ids, _: seen.append((layer, ids.shape)))
    with PlainLlama(path, 128, 1) as plain:
        expected = plain.logits(TOKENS, prefill)
    np.testing.assert_array_equal(model.logits(TOKENS, prefill), expected)
    # the last layer of a batch chooses for the one row that wants logits
    first = [(0, (prefill, 2)), (1, (prefill, 2)), (2, (1, 2))]
    assert seen == first + (len(TOKENS) - prefill) * [(layer, (1, 2)) for layer in range(3)]
    model.engine.watch(None)
    np.testing.assert_array_equal(model.logits(TOKENS, prefill), expected)
    assert len(seen) == 3 * (len(TOKENS) - prefill + 1)


@pytest.mark.parametrize("prefill", [1, 30])
def test_forced_experts_are_those_that_are_used(
    prefill: int, tiny_model: Any, open_model: Any
) -> None:
    model = open_model(tiny_model("qwen3moe"), 1.0)
    model.force({0: (0, 7), 1: (3, 4), 2: (5, 6)})
    model.logits(TOKENS, prefill)
    residents = model.experts.residents()
    assert residents is not None
    assert set(residents.experts) == {(0, 0), (0, 7), (1, 3), (1, 4), (2, 5), (2, 6)}
    assert model.experts.misses == 6


@pytest.mark.parametrize("prefill", [1, 30])
def test_what_a_watcher_raises_ends_the_call_and_no_more(
    prefill: int, tiny_model: Any, open_model: Any
) -> None:
    class StrangeError(Exception):
        pass

    def strange(layer: int, *_: object) -> None:
        if layer == 1:
            raise StrangeError("from the watcher")

    model = open_model(tiny_model("qwen3moe"))
    expected = model.logits(TOKENS, prefill)
    model.engine.watch(strange)
    with pytest.raises(StrangeError, match="from the watcher"):
        model.logits(TOKENS, prefill)
    model.experts.check_integrity()
    model.engine.watch(None)
    np.testing.assert_array_equal(model.logits(TOKENS, prefill), expected)


@pytest.mark.parametrize("expert", [-1, 8])
def test_an_expert_that_does_not_exist_cannot_be_forced(
    expert: int, tiny_model: Any, open_model: Any
) -> None:
    model = open_model(tiny_model("qwen3moe"))
    expected = model.logits(TOKENS, 30)
    model.force({0: (0, 1), 1: (2, expert), 2: (4, 5)})
    with pytest.raises(HaversackError, match="of layer 1 are asked for: give ids from 0 to 7"):
        model.logits(TOKENS, 30)
    model.engine.watch(None)
    np.testing.assert_array_equal(model.logits(TOKENS, 30), expected)


def test_no_router_is_watched_where_no_expert_is_streamed(tiny_model: Any) -> None:
    engine = open_resident(tiny_model("qwen3moe"), ContextShape(64, 32, 1))
    with pytest.raises(HaversackError, match="all experts are in memory"):
        engine.watch(lambda *_: None)
    engine.close()
