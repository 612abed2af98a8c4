"""Recorded routing, forced upon a model that runs: every engine then does the same work."""

import numpy as np
import numpy.typing as npt

from haversack.devices.ggml import GraphNode
from haversack.tools.routing import Trace

_CHOICE = "ffn_moe_topk-"


class Replay:
    """Writes a trace's choices over those of the routers, token after token, from its start again
    when it ends.

    The model has no more layers than the trace, as many experts, and uses as many per token.
    """

    def __init__(self, trace: Trace, num_layers: int) -> None:
        if num_layers > len(trace.layers):
            raise ValueError(f"{trace.name} has {len(trace.layers)} layers, the model {num_layers}")
        self._layers = trace.layers[:num_layers]
        self.rewind()

    def rewind(self) -> None:
        """Start again with the first step."""
        self._first = self._num_tokens = 0  # of the pass under way
        self._layer = len(self._layers)  # that chose last

    def __call__(self, layer: int, ids: npt.NDArray[np.int32]) -> None:
        """Set `ids` (T, N) of `layer` to the next T recorded choices."""
        if layer <= self._layer:
            self._first += self._num_tokens
            self._num_tokens = len(ids)
        self._layer = layer
        recorded = self._layers[layer]
        behind = self._first + self._num_tokens  # a last layer may see the last tokens alone
        ids[:] = recorded[np.arange(behind - len(ids), behind) % len(recorded)]

    def on_node(self, address: int, ask: bool, _: object) -> bool:
        """The same as llama.cpp's evaluation callback, for its own binding."""
        node = GraphNode(address)
        if not node.name.startswith(_CHOICE):
            return False
        if not ask:
            self(int(node.name.rpartition("-")[2]), node.array(np.int32)[0])
        return True


def trace_shape(trace: Trace) -> tuple[int, int]:
    """Experts of a layer, and experts per token."""
    return trace.num_experts, trace.layers[0].shape[1]
