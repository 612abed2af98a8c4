"""Watching what a model's experts are multiplied with, and how its routers weigh them, through
llama.cpp's evaluation callback."""

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from haversack.devices.ggml import GraphNode, is_choice
from haversack.offload.routing import chosen_probabilities

# (name of the weights, ids of the experts (R, N), activations (R, K)): each row of activations is
# multiplied with the matrices of its N experts
ActivationWatcher = Callable[[str, npt.NDArray[np.int32], npt.NDArray[np.float32]], None]
WeightWatcher = Callable[[npt.NDArray[np.float32]], None]  # router weights (R, N) of the N chosen

_LAST_KIND = "ffn_down_exps"


class ActivationWatch:
    """Calls `watcher` for every product with experts in passes of more rows than MOST_ROWS, and
    `weight_watcher`, if it is given, for every router's choice whose weights the graph shows.

    `streamed` says whether our device computes the products. It computes all of a layer's in one
    call, so llama.cpp may stop only after the last of them. What the first ones multiply lies
    before that call, so it is there when llama.cpp asks about them.
    """

    def __init__(
        self, watcher: ActivationWatcher, weight_watcher: WeightWatcher | None, *, streamed: bool
    ) -> None:
        self._watcher, self._weight_watcher, self._streamed = watcher, weight_watcher, streamed
        self.error: BaseException | None = None

    def on_node(self, address: int, ask: bool, _: object) -> bool:
        """With `ask`, return whether llama.cpp shall stop after this node. Without, the node is
        computed: return whether to go on."""
        node = GraphNode(address)
        is_choice_of_experts = self._weight_watcher is not None and is_choice(address)
        if not node.is_expert_product and not is_choice_of_experts:
            return not ask
        stops = is_choice_of_experts or not self._streamed or _LAST_KIND in node.source(0).name
        if ask and stops:
            return True
        try:
            self._tell_weights(node) if is_choice_of_experts else self._tell(node)
        except BaseException as error:  # it must not cross the C frame
            self.error = self.error or error
        return not ask

    def _tell_weights(self, choice: GraphNode) -> None:
        weights = chosen_probabilities(choice)
        if weights is not None and self._weight_watcher is not None:
            self._weight_watcher(weights)

    def _tell(self, node: GraphNode) -> None:
        name = node.source(0).name
        activations, ids = node.source(1).array(np.float32), node.source(2).array(np.int32)[0]
        if activations.shape[1] > 1:  # a row for each expert that a token uses
            ids = ids.reshape(-1, 1)
        self._watcher(name, ids, activations.reshape(len(ids), -1))
