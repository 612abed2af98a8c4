"""Watching what a model's experts are multiplied with, through llama.cpp's evaluation callback."""

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from haversack.devices.ggml import GraphNode

# (name of the weights, ids of the experts (R, N), activations (R, K)): each row of activations is
# multiplied with the matrices of its N experts
ActivationWatcher = Callable[[str, npt.NDArray[np.int32], npt.NDArray[np.float32]], None]

_LAST_KIND = "ffn_down_exps"


class ActivationWatch:
    """Calls `watcher` for every product with experts in passes of more rows than MOST_ROWS.

    `streamed` says whether our device computes the products. It computes all of a layer's in one
    call, so llama.cpp may stop only after the last of them. What the first ones multiply lies
    before that call, so it is there when llama.cpp asks about them.
    """

    def __init__(self, watcher: ActivationWatcher, *, streamed: bool) -> None:
        self._watcher, self._streamed = watcher, streamed
        self.error: BaseException | None = None

    def on_node(self, address: int, ask: bool, _: object) -> bool:
        """With `ask`, return whether llama.cpp shall stop after this node. Without, the node is
        computed: return whether to go on."""
        node = GraphNode(address)
        if not node.is_expert_product:
            return not ask
        name = node.source(0).name
        if ask and (_LAST_KIND in name or not self._streamed):
            return True
        try:
            self._tell(name, node)
        except BaseException as error:  # it must not cross the C frame
            self.error = self.error or error
        return not ask

    def _tell(self, name: str, node: GraphNode) -> None:
        activations, ids = node.source(1).array(np.float32), node.source(2).array(np.int32)[0]
        if activations.shape[1] > 1:  # a row for each expert that a token uses
            ids = ids.reshape(-1, 1)
        self._watcher(name, ids, activations.reshape(len(ids), -1))
