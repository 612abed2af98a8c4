"""The hit law: in which memory a token will find its experts.

Of the uses of experts that were used before, `(1 - share) * exp(-a * held ** b)` are misses.
`share` is the share of all experts that has slots, `held` how many tokens' choices fill them.
`python -m haversack.tools.routing.hit_law` fits it to recorded routing of four models. A model that
it was not fitted to misses it by 5 points of a hundred in the mean, by 7 at most.

The law holds for each memory: a device holds the experts that are used most, or, with a fixed
placement, as many uses as experts.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from haversack.edge.model_plan import Plan
from haversack.edge.placement import FIXED
from haversack.offload.pool import PoolPlan

MISS_LAW = (0.502, 0.74)  # a and b above


@dataclass(frozen=True)
class Found:
    """Which shares of the uses of a pool's experts are found on each device, and which in no
    memory. The others are found in RAM."""

    on_devices: tuple[float, ...]
    missing: float


def found_of(planned: Plan, pool: PoolPlan) -> Found:
    """Return where the uses of a pool's experts will find them."""
    number, used = planned.pools.index(pool), planned.geometry.num_experts_per_tok
    num_held, hits, on_devices = 0, 0.0, list[float]()
    for device in planned.devices:
        num_held += device.slots[number]
        share = num_held / (pool.num_experts * len(pool.layers))
        now = share if planned.placement == FIXED else 1 - slots_miss_rate(pool, num_held, used)
        on_devices.append(now - hits)
        hits = now
    missing = slots_miss_rate(pool, num_held + pool.num_slots, used)
    return Found(tuple(on_devices), min(missing, 1 - hits))


def slots_miss_rate(pool: PoolPlan, num_slots: int, num_experts_per_tok: int) -> float:
    """Return what share of the uses of a pool's experts are misses with so many slots."""
    share = num_slots / (pool.num_experts * len(pool.layers))
    return miss_rate(share, num_slots / (num_experts_per_tok * len(pool.layers)))


def miss_rate(share: float, held: float, law: Sequence[float] = MISS_LAW) -> float:
    """Return the misses of uses of experts that were used before; see above."""
    return max(0.0, 1 - share) * math.exp(-law[0] * held ** law[1])
