"""The last step of training a mixture: experts that starve get a part of their fair share again.

A balance loss asks for even loads on the whole, so it may leave an expert with next to nothing,
which then costs memory and adds nothing. As auxiliary-loss-free balancing does (Wang et al. 2024,
arXiv 2408.15664), the score of a starved expert is raised in small steps until the expert is chosen
often enough. The routers of qwen3moe have no bias that could keep the raise, so it is added to the
expert's row of the router, along the mean m of the router's inputs: the row w + raise * m / (m . m)
scores an input h higher by raise * (h . m) / (m . m). That is the raise for the mean, and near it
for most inputs. Rows of experts that do not starve stay unchanged.
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
    """An expert that starved, at first or after others were raised: its load over its fair share
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
    """Raise experts of `model` to `least_load` of their fair share on `windows`, each (B, T) int64;
    return those raised, none for a dense model.

    Only their rows of the routers change. Layers are settled from the first to the last, because a
    changed layer changes the inputs of those after it. Raises HaversackError if an expert stays
    below, however much its score is raised.
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
    """Return the hidden states (B, T, C) of each window after `block`; fill `routing`."""
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
    """Return each expert's load over its fair share on `inputs` (N, C): (E,)."""
    scores = functional.linear(inputs, block.ffn_gate_inp)
    chosen = scores.topk(block.shape.num_experts_per_tok, dim=-1).indices
    return expert_load(chosen.cpu().numpy(), block.shape.num_experts)
