"""Resizing: a model that streams its experts gets more or fewer slots while it is open."""

from dataclasses import replace

from haversack.devices.errors import BudgetError, HaversackError
from haversack.devices.ledger import Lease, ledger
from haversack.devices.units import format_bytes, format_need
from haversack.edge.model_plan import STREAMED, Plan
from haversack.offload.engine import Engine
from haversack.offload.pool import pools_bytes


def resized(planned: Plan, ram_bytes: int) -> Plan:
    """Return the plan with as many slots as `ram_bytes` hold; slots for all experts are the most.

    Raises BudgetError below the floor, HaversackError for a model that streams nothing.
    """
    name = planned.path.name
    if planned.mode != STREAMED:
        raise HaversackError(f"{name} has no slots to resize: load it again with another ram")
    grown_bytes = max(0, ledger.others_bytes() - planned.process_bytes)  # of the process itself
    fixed_bytes = planned.fixed_bytes + grown_bytes
    pools = planned.pools_in(ram_bytes - fixed_bytes)
    need_bytes = fixed_bytes + pools_bytes(pools)
    if need_bytes > ram_bytes:
        raise BudgetError(
            f"{name} needs at least {format_need(need_bytes)} while it is open, it would get"
            f" {format_bytes(ram_bytes)}: raise ram",
            need_bytes=need_bytes,
            have_bytes=ram_bytes,
        )
    return replace(planned, ram_bytes=ram_bytes, pools=pools, slot_bytes=pools_bytes(pools))


def resize(engine: Engine, lease: Lease, planned: Plan) -> None:
    """Give the slots of an engine, between two passes, the numbers of `planned`, and the lease its
    bytes. Raises BudgetError if other models of the budget or the system leave no room; nothing is
    changed then."""
    experts = engine.experts
    assert experts is not None, "a model that streams"
    _refuse_beyond_shared(planned, lease)
    before = [pool.plan.num_slots for pool in experts.pools]
    after = [pool.num_slots for pool in planned.pools]
    shrinking_first = sorted(range(len(after)), key=lambda number: after[number] - before[number])
    slots_bytes, limit_bytes = lease.slots_bytes, lease.budget.limit_bytes
    new_limit_bytes = limit_bytes if planned.shared else planned.ram_bytes
    if planned.slot_bytes > slots_bytes:
        lease.resize(planned.slot_bytes, new_limit_bytes)
    try:
        for number in shrinking_first:
            experts.resize(number, after[number])
    except BudgetError:
        for number in reversed(shrinking_first):
            experts.resize(number, before[number])
        lease.resize(slots_bytes, limit_bytes)
        raise
    lease.resize(planned.slot_bytes, new_limit_bytes)


def _refuse_beyond_shared(planned: Plan, lease: Lease) -> None:
    if planned.shared is None:
        return
    room_bytes = planned.shared.room_bytes + lease.reserved_bytes
    if planned.ram_bytes > room_bytes:
        raise BudgetError(
            f"{planned.path.name} would get {format_bytes(planned.ram_bytes)}, other models leave"
            f" {format_bytes(room_bytes)} of the shared {format_bytes(planned.shared.limit_bytes)}:"
            " close one, or give less",
            need_bytes=planned.ram_bytes,
            have_bytes=room_bytes,
        )
