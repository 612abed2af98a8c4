"""How many of a layer's experts can earlier layers predict? By layer, and by how many layers ahead.

    python -m haversack.tools.routing.recall MODEL --ram 6GiB [-p "Once"] [-n 128] [--csv FILE]

While the model answers with its own routing, each layer's router input is given to the routers of
the next three layers with experts (Fate, arXiv 2502.12224), as the engine does to prefetch. A cell
counts the experts that the later layer then chose for the token, and says how many percent of them
were among the likeliest of that prediction. A prediction has as many experts as the layer chooses,
or with "+2" two more. A prompt's batches do not count, because experts are not prefetched in this
way for them.
"""

import argparse
import sys
from collections import deque
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from haversack import edge
from haversack.devices.ggml import GraphNode
from haversack.edge.model_plan import STREAMED, Plan
from haversack.edge.planner import streamed
from haversack.offload.routing import Router, router_input
from haversack.tools.command_line import give_table, positive, tool

Vector = npt.NDArray[np.float32]

DEPTHS = (1, 2, 3)  # layers ahead
EXTRAS = (0, 2)  # experts predicted beyond as many as a token uses


class Recall:
    """Counts how many experts single tokens' router inputs predict; a watcher. `layers` are the
    numbers of the layers with experts. Axes: L layers that the input is from, D depths, A
    extras."""

    def __init__(self, layers: Sequence[int]) -> None:
        self.layers = layers
        self.num_chosen = np.zeros((len(layers), len(DEPTHS)), np.int64)  # (L, D)
        self.num_predicted = np.zeros((len(layers), len(DEPTHS), len(EXTRAS)), np.int64)
        self._routers: dict[int, Router | None] = {}
        self._single = False  # the pass under way is of one token
        self._inputs: deque[Vector | None] = deque(
            maxlen=len(DEPTHS)
        )  # of the latest layers, the last one first

    def __call__(self, layer: int, ids: npt.NDArray[np.int32], choice: GraphNode) -> None:
        """Compare `ids` (T, K), the choice of `layer`, with what was predicted, if T is 1."""
        if layer not in self._routers:
            self._routers[layer] = Router.learn(choice)
        if layer == self.layers[0]:  # a prompt's last layer may choose for one token
            self._single = len(ids) == 1
            self._inputs.clear()
        if not self._single:
            return
        for depth, inputs in zip(DEPTHS, self._inputs, strict=False):
            if inputs is not None:
                self._compare(layer, depth, inputs, ids[0])
        found = router_input(choice)
        self._inputs.appendleft(None if found is None else found.array(np.float32)[0, 0].copy())

    def _compare(
        self, layer: int, depth: int, inputs: Vector, chosen: npt.NDArray[np.int32]
    ) -> None:
        router = self._routers.get(layer)
        if router is None:
            return
        likeliest = router.likeliest(inputs, max(EXTRAS))
        cell = self.layers.index(layer) - depth, DEPTHS.index(depth)
        self.num_chosen[cell] += len(chosen)
        for index, extra in enumerate(EXTRAS):
            predicted = np.isin(chosen, likeliest[: len(chosen) + extra])
            self.num_predicted[(*cell, index)] += np.count_nonzero(predicted)

    def rows(self) -> list[dict[str, str]]:
        """Return a row for each layer but the last, then one for all: recall in percent by depth
        and extra, empty where no layer is that far ahead. Raises ValueError if nothing was
        predicted."""
        if not self.num_chosen.any():
            raise ValueError(
                "no router's choice could be predicted: raise -n, or its weights are not float32"
            )
        rows = [
            _row(str(layer), *counts)
            for layer, *counts in zip(self.layers, self.num_predicted, self.num_chosen, strict=True)
            if counts[1].any()
        ]
        return [*rows, _row("all", self.num_predicted.sum(axis=0), self.num_chosen.sum(axis=0))]


def _row(
    layer: str, num_predicted: npt.NDArray[np.int64], num_chosen: npt.NDArray[np.int64]
) -> dict[str, str]:
    row = {"layer": layer}
    for depth, predicted, chosen in zip(DEPTHS, num_predicted, num_chosen, strict=True):
        for extra, count in zip(EXTRAS, predicted, strict=True):
            column = f"{depth} ahead" + (f" +{extra}" if extra else "")
            row[column] = f"{100 * count / chosen:.1f}" if chosen else ""
    return row


def measure(planned: Plan, prompt: str, max_tokens: int, seed: int = 0) -> Recall:
    """Have the `planned` model (streamed) answer `prompt` with at most `max_tokens` tokens; return
    what was predicted. Raises HaversackError."""
    recall = Recall([layer.layer for layer in planned.geometry.layers])
    with edge.load(planned) as model:
        model.watch_routing(recall)
        for _ in model.generate(prompt, max_tokens=max_tokens, seed=seed):
            pass
    return recall


@tool
def main(arguments: Sequence[str] | None) -> int:
    """Measure what the command line asks for; the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", type=Path)
    parser.add_argument("-p", "--prompt", default="Once upon a time")
    parser.add_argument("-n", "--tokens", type=positive, default=128)
    parser.add_argument("--ram", help="the memory to run in; what is free by default")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--csv", type=Path, help="write the table there as well")
    given = parser.parse_args(arguments)
    planned = edge.plan(given.model, ram=given.ram)
    if planned.mode != STREAMED:  # routers are watched where experts are streamed
        planned = streamed(planned)
    table = measure(planned, given.prompt, given.tokens, given.seed).rows()
    give_table(table, given.csv)
    return 0


if __name__ == "__main__":
    sys.exit(main())
