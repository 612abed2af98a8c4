"""Recorded routing, forced upon a model that runs: every engine then does the same work."""

import time
import zipfile
import zlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from haversack.devices.errors import PromptError
from haversack.devices.ggml import GraphNode, is_choice
from haversack.quant.gguf import ModelGeometry

Choice = npt.NDArray[np.int64]  # (steps, experts per token) ids, of one layer
Weights = npt.NDArray[np.float32]  # theirs, of the same shape
Experts = npt.NDArray[np.int32]  # (experts per token,) ids

DEPTH = 3  # how many layers ahead the engine asks
# What is known two layers ahead, as a share of what is known one ahead, and so on. The built-in
# model's routers know 0.75, 0.65 and 0.61 of the experts; of Mixtral's first choices 0.96, 0.90 and
# 0.90 are known (HOBBIT, arXiv 2411.01433).
FADING = 0.88

_UNREADABLE = (ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile, zlib.error)


@dataclass(frozen=True)
class Trace:
    """The choices of a model's layers, step by step; a layer without experts has none.

    `weights` are the routers' weights of those choices, by layer as well, if they were recorded.
    """

    name: str
    num_experts: int
    layers: list[Choice]
    weights: list[Weights] | None = None

    @classmethod
    def load(cls, path: Path) -> "Trace":
        """Load a recorded trace; `tools/traces/README.md` describes the file. Raises
        PromptError."""
        events, num_experts, weights = _read(path)
        fault = _fault(events, num_experts, weights)
        if fault is not None:
            raise _refused(f"{path} is no recorded routing: {fault}")
        of_layers = [events[:, 1] == layer for layer in range(events[:, 1].max() + 1)]
        return cls(
            path.stem,
            num_experts,
            [events[rows, 2:] for rows in of_layers],
            None if weights is None else [weights[rows] for rows in of_layers],
        )

    @property
    def num_experts_per_tok(self) -> int:
        """How many experts a token uses in a layer."""
        return int(self.layers[0].shape[1])

    @property
    def num_steps(self) -> int:
        """The tokens that were recorded."""
        return max(map(len, self.layers))

    def deepened(self, num_layers: int) -> "Trace":
        """Return the trace of a model with `num_layers` layers: the recorded layers are repeated,
        each time from another moment of the recording, so that no two layers choose alike."""
        count = len(self.layers)
        step = self.num_steps // -(-num_layers // count)

        def at_other_moments(rows: list[Any]) -> list[Any]:
            return [
                np.roll(rows[layer % count], -(layer // count) * step, axis=0)
                for layer in range(num_layers)
            ]

        weights = None if self.weights is None else at_other_moments(self.weights)
        return replace(self, layers=at_other_moments(self.layers), weights=weights)

    def save(self, path: Path) -> None:
        """Write it as a file that `load` reads. Raises OSError."""
        rows = [
            np.column_stack([np.arange(len(choice)), np.full(len(choice), layer), choice])
            for layer, choice in enumerate(self.layers)
        ]
        arrays: dict[str, Any] = {"n_expert": self.num_experts, "top_k": self.num_experts_per_tok}
        if self.weights is not None:
            arrays["weights"] = np.concatenate(self.weights)
        with path.open("wb") as file:
            np.savez_compressed(file, events=np.concatenate(rows).astype(np.int32), **arrays)


def _read(path: Path) -> tuple[Choice, int, Weights | None]:
    """Return the events of the trace at `path`, how many experts a layer has, and the weights if
    they were recorded. Raises PromptError."""
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as data:
            weights = data["weights"].astype(np.float32) if "weights" in data else None
            return data["events"].astype(np.int64), int(data["n_expert"]), weights
    except OSError as error:
        raise _refused(f"cannot read the trace {path}: {error.strerror or error}") from error
    except _UNREADABLE as error:  # NumPy's words would not help
        raise _refused(
            f"{path} is no recorded routing: it is no whole .npz file with the numbers events and"
            " n_expert"
        ) from error


def _refused(why: str) -> PromptError:
    return PromptError(
        f"{why}; give a trace that python -m haversack.tools.routing.trace has written"
    )


def _fault(events: Choice, num_experts: int, weights: Weights | None) -> str | None:
    """Return why no router can have made these choices, None if one can: engines trust them."""
    if events.ndim != 2 or events.shape[1] < 3 or not len(events):
        return f"its events are an array of {events.shape}"
    ids = np.sort(events[:, 2:], axis=1)
    if events[:, 1].min() < 0 or ids.min() < 0 or ids.max() >= num_experts:
        return f"it names experts besides 0 to {num_experts - 1}, or a layer below 0"
    if (ids[:, 1:] == ids[:, :-1]).any():
        return "it chooses an expert twice for one token"
    if weights is not None and weights.shape != ids.shape:
        return f"its weights are an array of {weights.shape}, the ids of {ids.shape}"
    return None


class Replay:
    """Writes a trace's choices over those of the routers, token after token, from its start again
    when it ends."""

    def __init__(self, trace: Trace, geometry: ModelGeometry, recall: float = 0.0) -> None:
        """`geometry` is the model's, which may have fewer layers than the trace. `recall` is the
        share of a layer's experts that `predict` knows one layer ahead.

        Raises PromptError unless the trace has all of the model's layers, as many experts, and as
        many of them per token.
        """
        _refuse_misfit(trace, geometry)
        self._layers, self.num_steps = trace.layers, trace.num_steps
        recalls = [recall * FADING**further for further in range(DEPTH)] if recall else []
        self._predicted = [
            [predicted_choice(c, trace.num_experts, known) for c in trace.layers]
            for known in recalls
        ]
        self.callback_s = 0.0  # seconds spent in `on_node`
        self.rewind()

    def rewind(self) -> None:
        """Start again with the first step."""
        self._first = self._num_tokens = 0  # of the pass under way
        self._layer = len(self._layers)  # that chose last

    def __call__(self, layer: int, ids: npt.NDArray[np.int32], _: object = None) -> None:
        """Set `ids` (T, N) of `layer` to the next T recorded choices."""
        if layer <= self._layer:
            self._first += self._num_tokens
            self._num_tokens = len(ids)
        self._layer = layer
        ids[:] = self._layers[layer][self.steps(layer, len(ids))]

    def steps(self, layer: int, num_rows: int) -> npt.NDArray[np.int64]:
        """Return the recorded steps that the rows of the pass under way have in `layer`."""
        behind = self._first + self._num_tokens  # a last layer may see the last tokens alone
        steps: npt.NDArray[np.int64] = np.arange(behind - num_rows, behind)
        return steps % len(self._layers[layer])

    def predict(self, layer: int) -> Experts | None:
        """Return what a predictor of this recall would predict that `layer` chooses for the token
        under way. It knows less of a layer that is further ahead; None where it knows nothing."""
        depth = layer - self._layer
        if not 1 <= depth <= len(self._predicted):
            return None
        predicted = self._predicted[depth - 1][layer]
        prediction: Experts = predicted[self._first % len(predicted)]
        return prediction

    def on_node(self, address: int, ask: bool, _: object) -> bool:
        """Do the same as an evaluation callback of plain llama.cpp."""
        began_s = time.perf_counter()
        wanted = is_choice(address)
        if wanted and not ask:
            node = GraphNode(address)
            ids = np.empty(node.shape[1::-1], np.int32)
            self(int(node.name.rpartition("-")[2]), ids)
            node.write(ids)
        self.callback_s += time.perf_counter() - began_s
        return wanted


def predicted_choice(choice: Choice, num_experts: int, recall: float) -> Experts:
    """Return K experts for each step of a layer's `choice` (steps, K): each expert that was chosen
    with the chance of `recall`, and in place of the rest others, preferably those that the layer
    uses often."""
    random = np.random.default_rng(0)
    often = np.bincount(choice.ravel(), minlength=num_experts) + 1.0
    predicted = np.empty(choice.shape, np.int32)
    for step, chosen in enumerate(choice):
        known = chosen[random.random(len(chosen)) < recall]
        chances = often.copy()
        chances[chosen] = 0
        count = len(chosen) - len(known)
        wrong = random.choice(num_experts, count, replace=False, p=chances / chances.sum())
        predicted[step] = np.concatenate([known, wrong])
    return predicted


def _refuse_misfit(trace: Trace, geometry: ModelGeometry) -> None:
    recorded = {layer for layer, choice in enumerate(trace.layers) if len(choice)}
    routed = {layer.layer for layer in geometry.layers}
    found = (trace.num_experts, trace.num_experts_per_tok)
    num_experts = max((layer.num_experts for layer in geometry.layers), default=0)
    needed = (num_experts, geometry.num_experts_per_tok)
    if found != needed or not routed <= recorded:
        raise PromptError(
            f"the trace {trace.name} has {_described(len(recorded), found)}, the model"
            f" {_described(len(routed), needed)}: give a trace of this model"
        )


def _described(num_layers: int, experts: tuple[int, int]) -> str:
    return f"{num_layers} layers of {experts[0]} experts, {experts[1]} per token"
