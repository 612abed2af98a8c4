"""The last step of training a mixture: starved experts get a part of their fair share again.

A balance loss asks for even loads on the whole and may still leave an expert with next to nothing,
which then costs memory and gives nothing. As auxiliary-loss-free balancing does (Wang et al. 2024,
arXiv 2408.15664), a starved expert's score is raised by small steps until it is chosen often
enough. qwen3moe's routers have no bias to keep what was added, so it goes into the expert's row of
the router, along the mean m of the router's inputs: w + raise * m / (m . m) scores an input h
higher by raise * (h . m) / (m . m), which is the raise on the mean and near it for most inputs.
Rows of experts that do not starve stay as they are.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional

from haversack.devices.errors import HaversackError
from haversack.tools.routing.measures import expert_load
from haversack.tools.training.decoder import Block, Decoder, Routing, rotary_angles

_STEP = 0.02  # of a score, about a hundredth of its standard deviation in a trained model
_MOST_STEPS = 500


@dataclass(frozen=True)
class RaisedExpert:
    """An expert that starved, at first or once others were raised: its load over its fair share
    before and after, and what was added to its mean score."""

    layer: int
    expert: int
    load_before: float
    load_after: float
    raised_by: float


@torch.no_grad()
def settle_routers(
    model: Decoder, windows: Sequence[Tensor], least_load: float
) -> list[RaisedExpert]:
    """The experts of `model` that were raised to `least_load` of their fair share on `windows`,
    each (B, T) int64: their rows of the routers are changed, no other. None of a dense model.

    Layers go from the first to the last, as a changed one changes the inputs of those after it.
    Raises HaversackError if an expert stays below, however much its score is raised.
    """
    if not model.shape.num_experts:
        return []
    hidden = [functional.embedding(tokens, model.token_embd) for tokens in windows]
    found: list[RaisedExpert] = []
    for layer, block in enumerate(model.blk):
        assert isinstance(block, Block)
        routing = Routing([], [], [])
        after = _outputs(block, hidden, routing)
        raised = _raise_starved(block, torch.cat(routing.inputs), least_load, layer)
        hidden = _outputs(block, hidden) if raised else after
        found += raised
    return found


def _outputs(block: Block, hidden: list[Tensor], routing: Routing | None = None) -> list[Tensor]:
    """The hidden states (B, T, C) of each of the windows after `block`; fills `routing`."""
    return [
        block(states, rotary_angles(block.shape, states.shape[1], states.device), routing)[0]
        for states in hidden
    ]


def _raise_starved(
    block: Block, inputs: Tensor, least_load: float, layer: int
) -> list[RaisedExpert]:
    """Change the rows of the starved experts of `block`, whose router sees `inputs` (N, C)."""
    router = block.ffn_gate_inp
    inputs = inputs.to(router.dtype)
    mean = inputs.mean(dim=0)
    direction = mean / mean.dot(mean)
    load = before = _loads(block, inputs)
    steps = np.zeros(len(load), np.int64)
    while (starved := load < least_load).any():
        if steps.max() == _MOST_STEPS:
            raise HaversackError(
                f"layer {layer}: an expert takes {float(load.min()):.3f} of its fair share, below "
                f"{least_load}, with its score raised by {_MOST_STEPS * _STEP:g}: train longer"
            )
        router[torch.from_numpy(starved)] += _STEP * direction
        steps += starved
        load = _loads(block, inputs)
    return [
        RaisedExpert(layer, e, float(before[e]), float(load[e]), _STEP * int(steps[e]))
        for e in map(int, np.flatnonzero(steps))
    ]


def _loads(block: Block, inputs: Tensor) -> npt.NDArray[np.float64]:
    """Each expert's load over its fair share on `inputs` (N, C): (E,)."""
    scores = functional.linear(inputs, block.ffn_gate_inp)
    chosen = scores.topk(block.shape.num_experts_per_tok, dim=-1).indices
    return expert_load(chosen.cpu().numpy(), block.shape.num_experts)
