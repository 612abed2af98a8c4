"""Record what a model's routers choose while it answers: a trace that other tools replay.

    python -m haversack.tools.routing.trace MODEL OUT.npz -p "Once upon a time" -n 128 --ram 6GiB
    python -m haversack.tools.routing.simulate OUT.npz           # hit rates by eviction rule
    python -m haversack.tools.bench.stream MODEL --trace OUT.npz     # forced upon the engine

`tools/traces/README.md` describes the file.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from haversack import edge
from haversack.devices.ggml import GraphNode
from haversack.edge.model_plan import STREAMED
from haversack.edge.planner import streamed
from haversack.edge.replay import Weights
from haversack.offload.routing import chosen_probabilities
from haversack.tools.command_line import positive, tool


@dataclass(frozen=True)
class Noted:
    """A choice. `rows` (T, 2 + K) are the step, the layer and the ids chosen; `weights` (T, K) are
    the router's weights of those ids, None if the router has none when it chooses."""

    rows: npt.NDArray[np.int32]
    weights: Weights | None


class Recorder:
    """Keeps the choices of all routers: those of a prompt's batches apart from those of single
    tokens.

    Steps of a prompt count the tokens that the layer chose for. Weights are the router's
    probabilities of the experts chosen, not renormalised over them (see `chosen_probabilities`).
    """

    def __init__(self, num_layers: int) -> None:
        self.prefill: list[Noted] = []
        self.decode: list[Noted] = []
        self._next = {
            True: [0] * num_layers,
            False: [0] * num_layers,
        }  # the next step, by whether it is of a prompt
        self._layer, self._of_prompt = num_layers, False  # of the latest choice

    def __call__(self, layer: int, ids: npt.NDArray[np.int32], choice: GraphNode) -> None:
        """Record `ids` (T, K), the choice of `layer`, and its router's probabilities of them."""
        self.note(layer, ids, chosen_probabilities(choice))

    def note(self, layer: int, ids: npt.NDArray[np.int32], weights: Weights | None) -> None:
        """Record `ids` (T, K), the choice of `layer`, and their `weights` (T, K)."""
        if layer <= self._layer:  # a pass begins: a prompt's last layer may choose for one token
            self._of_prompt = len(ids) > 1
        self._layer, of_prompt = layer, self._of_prompt
        first = self._next[of_prompt][layer]
        self._next[of_prompt][layer] = first + len(ids)
        steps = np.arange(first, first + len(ids), dtype=np.int32)[:, None]
        rows = np.hstack([steps, np.full_like(steps, layer), ids])
        (self.prefill if of_prompt else self.decode).append(Noted(rows, weights))

    def save(self, path: Path, num_experts: int) -> None:
        """Write the trace. Raises ValueError if no token was decoded."""
        if not self.decode:
            raise ValueError("no token was decoded, so there is no routing to keep: raise -n")
        arrays = _sorted(self.decode, "")
        if self.prefill:
            arrays |= _sorted(self.prefill, "prefill_")
        num_used = arrays["events"].shape[1] - 2
        np.savez_compressed(path, **arrays, n_expert=num_experts, top_k=num_used)


def _sorted(choices: Sequence[Noted], prefix: str) -> dict[str, Any]:
    """Return all rows, step after step, and their weights if each has some."""
    events = np.concatenate([noted.rows for noted in choices])
    order = np.lexsort((events[:, 1], events[:, 0]))
    arrays: dict[str, Any] = {f"{prefix}events": events[order]}
    weights = [noted.weights for noted in choices if noted.weights is not None]
    if len(weights) == len(choices):
        arrays[f"{prefix}weights"] = np.concatenate(weights)[order]
    return arrays


def record(model: edge.Model, prompt: str, max_tokens: int, seed: int = 0) -> Recorder:
    """Record the routing of an answer of at most `max_tokens` tokens to `prompt`. Raises
    HaversackError if all experts are in memory, because no router is watched then."""
    recorder = Recorder(1 + max(layer.layer for layer in model.plan.geometry.layers))
    model.watch_routing(recorder)
    try:
        for _ in model.generate(prompt, max_tokens=max_tokens, seed=seed):
            pass
    finally:
        model.watch_routing(None)
    return recorder


@tool
def main(arguments: Sequence[str] | None) -> int:
    """Record what the command line asks for; the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("-p", "--prompt", default="Once upon a time")
    parser.add_argument("-n", "--tokens", type=positive, default=128)
    parser.add_argument("--ram", help="the memory to run in; what is free by default")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args(arguments)
    planned = edge.plan(given.model, ram=given.ram)
    if planned.mode != STREAMED:  # routers are watched where experts are streamed
        planned = streamed(planned)
    with edge.load(planned) as model:
        recorder = record(model, given.prompt, given.tokens, given.seed)
    num_experts = max(layer.num_experts for layer in planned.geometry.layers)
    recorder.save(given.out, num_experts)
    steps = len({int(noted.rows[0, 0]) for noted in recorder.decode})
    print(json.dumps({"trace": str(given.out), "steps": steps, "experts": num_experts}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
