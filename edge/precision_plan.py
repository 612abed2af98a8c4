"""Plans with slots of two precisions."""

from dataclasses import replace

from haversack.devices.errors import BudgetError
from haversack.devices.needs import product_scratch
from haversack.devices.units import format_bytes, format_need
from haversack.edge.model_plan import EXACT, Plan
from haversack.offload.expert_engine import low_scratch_bytes
from haversack.offload.pool import pools_bytes
from haversack.offload.precision import Precision
from haversack.quant.lowbit import LowCopies


def with_precision(planned: Plan, fidelity: str, precision: Precision) -> Plan:
    """Return the streamed plan with slots of two precisions in place of its own. Raises BudgetError
    with the floor, which is higher."""
    more_bytes = _low_scratch(planned, precision.low)
    fixed_bytes = planned.fixed_bytes + more_bytes
    of_two = replace(planned, fidelity=fidelity, precision=precision)
    floor_bytes = fixed_bytes + pools_bytes(of_two.pools_in(0))
    if planned.ram_bytes < floor_bytes:
        raise BudgetError(
            f"{planned.path.name} in two precisions needs at least {format_need(floor_bytes)}"
            f" ({floor_bytes} bytes), the budget is {format_bytes(planned.ram_bytes)}: raise --ram,"
            f" or use --fidelity {EXACT}",
            need_bytes=floor_bytes,
            have_bytes=planned.ram_bytes,
        )
    pools = of_two.pools_in(planned.ram_bytes - fixed_bytes)
    return replace(
        of_two,
        pools=pools,
        slot_bytes=pools_bytes(pools),
        compute_bytes=planned.compute_bytes + more_bytes,
        scratch_bytes=planned.scratch_bytes + more_bytes,
        floor_bytes=min(planned.full_bytes, floor_bytes),
    )


def _low_scratch(planned: Plan, low: LowCopies) -> int:
    """Return what products with low copies need besides: their slots are tensors of their own, and
    their types may want rows converted in another way."""
    geometry, used = planned.geometry, planned.geometry.num_experts_per_tok
    all_slots = sum(layer.num_experts for layer in geometry.layers)
    rows_bytes = low_scratch_bytes(geometry.layers, low, planned.shape.batch_tokens, used)
    return rows_bytes + product_scratch(all_slots, used)
