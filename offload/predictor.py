"""Which experts later layers are likely to choose, as told by their own routers from this layer's
router input (Fate, arXiv 2502.12224; HOBBIT, arXiv 2411.01433, section 3.4).

Routers are learnt from llama.cpp's graph while it runs: their weights are where llama.cpp keeps
them, and the nodes after them tell how a choice is made.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from haversack.devices.ggml import F32, GraphNode

Vector = npt.NDArray[np.float32]
RowsProduct = Callable[[Vector, Vector], Vector]  # (M, K) times rows (R, K): (R, M)
_MOST_NODES = 40  # between a router's product and its choice
_SAMPLED_TOKENS = 128  # of a batch: what two of them are likely to choose, one of all will


@dataclass(frozen=True)
class Router:
    """How one layer chooses: `weight` (experts, hidden size) times its input, then biases.

    `sigmoid` says how a score becomes a probability, else it is softmax. Of `num_groups` groups
    only the `groups_used` best may be chosen from.
    """

    weight: npt.NDArray[np.float32]
    num_used: int
    score_bias: Vector | None = None
    choice_bias: Vector | None = None
    sigmoid: bool = False
    num_groups: int = 1
    groups_used: int = 1

    @property
    def is_plain(self) -> bool:
        """Whether it chooses those of the highest scores: probabilities have their order."""
        return self.choice_bias is None and self.num_groups == 1

    def likeliest(self, inputs: Vector, extra: int = 0) -> npt.NDArray[np.int32]:
        """The experts it would choose from `inputs` (hidden size,), and the `extra` next ones, the
        likeliest first."""
        worth = self._worth(self.weight @ inputs)
        count = min(len(worth), self.num_used + extra)
        best = np.argpartition(-worth, count - 1)[:count]
        return best[np.argsort(-worth[best])].astype(np.int32)

    def popular(self, inputs: Vector, product: RowsProduct) -> npt.NDArray[np.int32]:
        """The experts that at least two tokens of a batch would choose from its `inputs` (T, hidden
        size), those of most tokens first. Of a large batch only some tokens are asked."""
        sampled = inputs[:: -(-len(inputs) // _SAMPLED_TOKENS)]
        worth = self._worth(product(self.weight, sampled))
        best = np.argpartition(-worth, self.num_used - 1, axis=1)[:, : self.num_used]
        uses = np.bincount(best.ravel(), minlength=worth.shape[1])
        order = np.argsort(-uses, kind="stable")
        return order[: np.count_nonzero(uses >= 2)].astype(np.int32)

    def _worth(self, scores: Vector) -> Vector:
        """What experts are chosen by, given the router's `scores` (..., experts)."""
        if self.score_bias is not None:
            scores = scores + self.score_bias
        if self.is_plain:
            return scores
        worth = _sigmoid(scores) if self.sigmoid else _softmax(scores)
        if self.choice_bias is not None:
            worth = worth + self.choice_bias
        return self._of_best_groups(worth) if self.num_groups > 1 else worth

    def _of_best_groups(self, worth: Vector) -> Vector:
        """A group is as good as its two best; what is in no good one is out of the question."""
        kept = worth.reshape(*worth.shape[:-1], self.num_groups, -1).copy()
        group_worth = np.sort(kept, axis=-1)[..., -2:].sum(axis=-1)
        worst = np.argsort(-group_worth, axis=-1)[..., self.groups_used :]
        np.put_along_axis(kept, worst[..., None], -np.inf, axis=-2)
        return kept.reshape(worth.shape)


def _sigmoid(scores: Vector) -> Vector:
    powers: Vector = 1 + np.exp(-scores)
    return np.float32(1) / powers


def _softmax(scores: Vector) -> Vector:
    powers: Vector = np.exp(scores - scores.max(axis=-1, keepdims=True))
    total: Vector = powers.sum(axis=-1, keepdims=True)
    return powers / total


class Predictor:
    """The routers seen so far, by layer."""

    def __init__(self) -> None:
        self._routers: dict[int, Router | None] = {}

    def learn(self, layer: int, choice: GraphNode) -> GraphNode | None:
        """Look at the nodes before `choice`, the node of `layer`'s choice: its router's input, or
        None where it cannot be told."""
        nodes = _ancestors(choice)
        product = nodes[-1]
        if not product.is_product:
            self._routers[layer] = None
            return None
        if layer not in self._routers:
            self._routers[layer] = _router(choice, nodes)
        return product.source(1)

    def router(self, layer: int) -> Router | None:
        """How `layer` chooses; None if that is not known."""
        return self._routers.get(layer)

    def has_seen(self, layer: int) -> bool:
        """Whether `layer` was looked at, with whatever result."""
        return layer in self._routers

    def likeliest(self, layer: int, inputs: Vector, extra: int = 0) -> npt.NDArray[np.int32] | None:
        """What `layer` would choose from an earlier layer's router `inputs` (hidden size,); None
        for a layer whose router is not known."""
        router = self._routers.get(layer)
        return None if router is None else router.likeliest(inputs, extra)

    def popular(
        self, layer: int, inputs: Vector, product: RowsProduct
    ) -> npt.NDArray[np.int32] | None:
        """The same for a batch's `inputs` (T, hidden size), see `Router.popular`."""
        router = self._routers.get(layer)
        return None if router is None else router.popular(inputs, product)


def chosen_probabilities(choice: GraphNode) -> npt.NDArray[np.float32] | None:
    """The router's probabilities (T, K) of the experts chosen in `choice`, the node of a choice;
    None where the graph makes them only later (Llama 4).

    They are the softmax over all experts or the sigmoids, whichever the router has, without a bias
    on the choice and before any renormalisation or scaling of those chosen. Where llama.cpp has
    only scores yet, whose softmax will be over those chosen (gpt-oss), it is taken over all here:
    renormalised, both are the same.
    """
    node = _by_name(_ancestors(choice)).get("ffn_moe_probs")
    if node is None:
        return None
    probabilities: npt.NDArray[np.float32] = node.array(np.float32)[0]
    if node.is_product or node.is_sum:
        probabilities = _softmax(probabilities)
    return np.take_along_axis(probabilities, choice.array(np.int32)[0], axis=1)


def _ancestors(choice: GraphNode) -> list[GraphNode]:
    """The nodes that `choice` is made from; the last is the router's product, if there is one."""
    found: list[GraphNode] = []
    waiting = [choice]
    while waiting and len(found) < _MOST_NODES:
        node = waiting.pop()
        found.append(node)
        if node.is_product:
            break
        waiting += [node.source(i) for i in (1, 0) if node.source_address(i)]
    return found


def _by_name(nodes: Sequence[GraphNode]) -> dict[str, GraphNode]:
    """By the name without the layer; of a node and its views, the node."""
    return {node.name.partition("-")[0]: node for node in nodes}


def _router(choice: GraphNode, nodes: Sequence[GraphNode]) -> Router | None:
    """None where the weights are no plain numbers."""
    product = nodes[-1]
    weight = product.source(0)
    if weight.type_id != F32:
        return None
    named = _by_name(nodes)
    groups = named.get("ffn_moe_group_topk")
    probabilities = named.get("ffn_moe_probs")
    biased = [n for n in nodes if n.is_sum and n.source_address(0) == product.address]
    return Router(
        weight=weight.array(np.float32)[0],
        num_used=choice.shape[0],
        score_bias=_bias(biased[0]) if biased else None,
        choice_bias=_bias(named.get("ffn_moe_probs_biased")),
        sigmoid=probabilities is not None and probabilities.is_unary,
        num_groups=groups.source(0).shape[0] if groups is not None else 1,
        groups_used=groups.shape[0] if groups is not None else 1,
    )


def _bias(added: GraphNode | None) -> Vector | None:
    if added is None:
        return None
    bias: Vector = added.source(1).array(np.float32).reshape(-1)
    return bias
