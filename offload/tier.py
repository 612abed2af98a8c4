"""Tiers: memories besides the host's that hold slots for experts. A device tier is one on a ggml
device, which computes with the experts that lie there."""

from collections.abc import Sequence
from dataclasses import dataclass

from haversack.offload.pool import PoolPlan, Shape
from haversack.quant.gguf import ExpertLayer

_LEAST_PAIRS = 256  # of rows with their experts in one graph
_FLOAT_BYTES = 4
_KEPT_PAIRS = 16  # see device_tier.cpp
_GRAPHS_BYTES = 32 * 1024  # a layer's for one number of pairs: one, or a small one for each product
# A row's inputs, and of each product its result, what a bias and an activation make of it, and the
# bias: more than any architecture needs.
_RESULTS_PER_PRODUCT = 4


@dataclass(frozen=True)
class DeviceTier:
    """Slots on a ggml device.

    `device` is the address of ggml's handle, `num_slots` are the slots of each pool, in the order
    of the pools' plans. With `exclusive` an expert that moves up leaves its slot on the host. With
    `fixed` the slots are filled at load, with the same experts each time, and keep them. Each pool
    has `num_staging` slots more, through which experts of a long prompt pass; with 0 none does.
    """

    device: int
    name: str
    num_slots: tuple[int, ...]
    exclusive: bool = False
    fixed: bool = False
    num_staging: int = 0


@dataclass(frozen=True)
class TierCounts:
    """What a tier did: `hits` are uses of experts that lay there, `promoted` experts moved up with
    `moved_bytes`, and `streamed` were copied there to be computed for one batch. A tier that
    `is_lost` failed and is not used any more."""

    name: str
    hits: int
    promoted: int
    moved_bytes: int
    streamed: int
    is_lost: bool


def device_slot_bytes(shape: Shape) -> int:
    """Return the memory of one slot on a device of a pool for `shape`."""
    return sum(shape)


def tier_slot_bytes(tier: DeviceTier, plans: Sequence[PoolPlan]) -> int:
    """Return the memory of all slots of a tier, whose pools have these plans on the host."""
    return sum(
        (num_slots + tier.num_staging) * device_slot_bytes(plan.shape)
        for num_slots, plan in zip(tier.num_slots, plans, strict=True)
        if num_slots
    )


def workspace_bytes(layers: Sequence[ExpertLayer], batch_tokens: int) -> int:
    """Return the memory that a device tier takes besides slots, for inputs and results."""
    row_elements = max(
        sum(m.row_elements + _RESULTS_PER_PRODUCT * m.num_rows for m in layer.matrices)
        for layer in layers
    )
    return max(_LEAST_PAIRS, batch_tokens) * row_elements * _FLOAT_BYTES


def tier_host_bytes(layers: Sequence[ExpertLayer], batch_tokens: int, experts_per_tok: int) -> int:
    """Return the most host memory that a device tier takes: the graphs that are kept, of one row,
    of several rows and of a batch, what inputs and results are copied through, and a batch's inputs
    and results, of which a device computes a part after the other."""
    num_kept = min(_KEPT_PAIRS, experts_per_tok) + _KEPT_PAIRS + 1
    batch_elements = max(
        layer.matrices[0].row_elements
        + experts_per_tok * layer.matrices[-1].row_elements
        + experts_per_tok * max(matrix.num_rows for matrix in layer.matrices)
        for layer in layers
    )
    batch_bytes = batch_tokens * batch_elements * _FLOAT_BYTES
    graph_bytes = len(layers) * num_kept * _GRAPHS_BYTES
    return graph_bytes + workspace_bytes(layers, batch_tokens) + batch_bytes
