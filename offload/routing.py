"""Watching and forcing what the routers of a model choose, through llama.cpp's evaluation callback.

The callback sees every node of the graph, which costs time: a context has one only while its
routing is watched.
"""

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from haversack.devices import _native as devices
from haversack.devices.errors import HaversackError
from haversack.devices.ggml import GraphNode, is_choice
from haversack.offload import _native as native
from haversack.offload.expert_engine import ExpertEngine

Watcher = Callable[[int, npt.NDArray[np.int32], GraphNode], None]


class RoutingWatch:
    """Calls `watcher` for every choice: with the layer, the ids (T, N), which it may change, and
    the node of the choice, which leads to all nodes that the choice was made from.

    `experts` gets the exception that `watcher` raises, because none may cross the C frame.
    """

    def __init__(self, watcher: Watcher, experts: ExpertEngine) -> None:
        self._watcher, self._experts = watcher, experts

    def on_node(self, address: int, ask: bool, _: object) -> bool:
        """With `ask`, return whether llama.cpp shall stop after this node. Without, the node is
        computed: return whether to go on."""
        if not is_choice(address):
            return not ask
        if ask:
            return True
        node = GraphNode(address)
        try:
            layer, ids = int(node.name.rpartition("-")[2]), node.array(np.int32)[0]
            self._watcher(layer, ids, node)
            self._experts.check_choice(layer, ids)
        except BaseException as error:
            self._experts.fail(error)
            return False
        return True


class Router:
    """How one layer chooses its experts. The engine reads this from llama.cpp's graph, to predict
    the choices of later layers (native/router.hpp)."""

    def __init__(self, address: int) -> None:
        self._address = address

    @classmethod
    def learn(cls, choice: GraphNode) -> "Router | None":
        """Return the router that made `choice`, a node of the running graph; None if the graph has
        an unknown form."""
        address = native.router_learn(choice.address)
        return None if address is None else cls(address)

    def likeliest(self, inputs: npt.NDArray[np.float32], extra: int = 0) -> npt.NDArray[np.int32]:
        """Return the experts that it would choose from `inputs` (hidden size,) float32, and the
        `extra` next ones, the likeliest first."""
        experts = np.empty(native.router_num_experts(self._address), np.int32)
        row = np.ascontiguousarray(inputs, np.float32)
        count = native.router_choose(
            self._address, devices.address_of(row), extra, devices.address_of(experts)
        )
        return experts[:count]

    def __del__(self) -> None:
        native.router_delete(self._address)


def router_input(choice: GraphNode) -> GraphNode | None:
    """Return the node of the router's input, (T, hidden size); None if the graph does not show
    it."""
    address = native.router_input(choice.address)
    return None if address is None else GraphNode(address)


def chosen_probabilities(choice: GraphNode) -> npt.NDArray[np.float32] | None:
    """Return the router's probabilities (T, K) of the experts in `choice`, the node of a choice;
    None if the graph computes them only later (Llama 4).

    They are the softmax over all experts or the sigmoids, whichever the router has, without a bias
    on the choice and before any renormalisation or scaling of those chosen. Where llama.cpp has
    only scores yet, whose softmax will be over those chosen (gpt-oss), it is taken over all here:
    renormalised, both are the same.
    """
    address = native.router_probabilities(choice.address)
    if address is None:
        return None
    node = GraphNode(address)
    probabilities: npt.NDArray[np.float32] = node.array(np.float32)[0]
    if node.is_product or node.is_sum:
        probabilities = _softmax(probabilities)
    return np.take_along_axis(probabilities, choice.array(np.int32)[0], axis=1)


def set_probabilities(choice: GraphNode, probabilities: npt.NDArray[np.float32]) -> None:
    """Write `probabilities` (T, K) over the router's own of the experts in `choice`, as
    `chosen_probabilities` reads them. Raises HaversackError if the graph has none to write to."""
    address = native.router_probabilities(choice.address)
    node = None if address is None else GraphNode(address)
    if node is None or node.is_product or node.is_sum:
        raise HaversackError(f"{choice.name} is made from no probabilities: they cannot be forced")
    ids = choice.array(np.int32)[0]
    np.put_along_axis(node.array(np.float32)[0], ids.astype(np.int64), probabilities, axis=1)


def _softmax(scores: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    powers: npt.NDArray[np.float32] = np.exp(scores - scores.max(axis=-1, keepdims=True))
    total: npt.NDArray[np.float32] = powers.sum(axis=-1, keepdims=True)
    return powers / total
