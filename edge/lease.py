"""The part of its budget that a model gets when it is loaded, which may be long after planning."""

from collections.abc import Sequence

from haversack.devices.budget import MemoryBudget
from haversack.devices.errors import BudgetError
from haversack.devices.ledger import Lease, ledger
from haversack.devices.units import format_bytes
from haversack.edge.model_plan import STREAMED, Plan
from haversack.edge.shared_budget import Budget
from haversack.offload.pool import PoolPlan, pools_bytes


def lease_for(planned: Plan) -> Lease:
    """Lease the model's part of its budget. Raises BudgetError if the process or other models took
    so much since it was planned that not even the floor is left."""
    budget = (planned.shared or Budget(planned.ram_bytes)).ram
    process_bytes = max(planned.process_bytes, ledger.others_bytes())
    room_bytes = budget.left_bytes - process_bytes
    parts, slots_bytes = planned.parts(), planned.slot_bytes if planned.mode == STREAMED else 0
    fixed_bytes = sum(parts.values())
    if planned.own_bytes > room_bytes:
        if planned.mode != STREAMED:
            raise _overtaken(planned.own_bytes, process_bytes, budget, budget.left_bytes)
        slots_bytes = pools_bytes(planned.pools_in(room_bytes - fixed_bytes))
        if fixed_bytes + slots_bytes > room_bytes:
            need_bytes = fixed_bytes + slots_bytes
            raise _overtaken(need_bytes, process_bytes, budget, budget.left_bytes)
    return ledger.lease(budget, "model", parts, slots_bytes)


def _overtaken(
    need_bytes: int, process_bytes: int, budget: MemoryBudget, room_bytes: int
) -> BudgetError:
    """Return the error; `room_bytes` is what other models leave of the budget."""
    others_bytes = budget.limit_bytes - room_bytes
    beside = f" and {format_bytes(others_bytes)} for other models" if others_bytes else ""
    return BudgetError(
        f"the process holds {format_bytes(process_bytes)} already, so the budget of"
        f" {format_bytes(budget.limit_bytes)} with it{beside} does not hold the"
        f" {format_bytes(need_bytes)} that this model needs: close what is open, or raise --ram",
        need_bytes=need_bytes + process_bytes + others_bytes,
        have_bytes=budget.limit_bytes,
    )


def pools_left(planned: Plan, lease: Lease) -> Sequence[PoolPlan]:
    """Return the planned pools, or smaller ones if less memory is left than was planned. It is
    called after the trunk was loaded, so that its memory is known. Raises BudgetError if not even
    the floor is left."""
    taken_bytes = ledger.others_bytes() + planned.kv_bytes + planned.compute_bytes
    room_bytes = lease.budget.left_bytes + lease.reserved_bytes
    left_bytes = min(room_bytes - taken_bytes, lease.slots_bytes)
    if pools_bytes(planned.pools) <= left_bytes:
        return planned.pools
    pools = planned.pools_in(left_bytes)
    if pools_bytes(pools) > left_bytes:
        raise _overtaken(pools_bytes(pools), taken_bytes, lease.budget, room_bytes)
    return pools
