"""The planner: decides how a budget is spent, before anything is allocated."""

import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from typing_extensions import Unpack

from haversack.devices.errors import BudgetError, ModelFileError, PromptError
from haversack.devices.grammar import trie_bytes
from haversack.devices.ledger import ledger
from haversack.devices.llama import (
    MOST_ROWS,
    ContextShape,
)
from haversack.devices.llama_model import LlamaModel
from haversack.devices.memory import probe_ram
from haversack.devices.needs import (
    LOGIT_BYTES,
    VOCABULARY_FACTOR,
    MemoryNeeds,
    memory_needs,
    product_scratch,
)
from haversack.devices.sampler import chain_bytes
from haversack.devices.system import host
from haversack.devices.units import format_bytes, format_need, size_bytes
from haversack.devices.vocabulary import Vocabulary
from haversack.edge.context_shape import ShapeSettings, context_shape, refuse_boundless
from haversack.edge.draft_sizes import WHOLE
from haversack.edge.drafter_plan import SHORT_WINDOW_TOKENS, Drafting, plan_drafting
from haversack.edge.hub import local_path
from haversack.edge.learning.learner_plan import learner_bytes
from haversack.edge.model_plan import DENSE, RESIDENT, STREAMED, Costs, Plan
from haversack.edge.placement import (
    FIXED,
    FREE,
    DevicePlan,
    Placement,
    checked_placement,
    least_bytes,
    place_experts,
)
from haversack.edge.shared_budget import Budget
from haversack.edge.trunk_plan import (
    AUTO_TRUNK,
    DEVICE,
    TrunkPlan,
    checked_trunk,
    may_hold_trunk,
    plan_trunk,
)
from haversack.edge.vram import (
    DeviceBudget,
    Vram,
    VramAsk,
    asked_vram,
    device_budgets,
    is_remote,
)
from haversack.offload.expert_engine import scratch_bytes
from haversack.offload.pool import PoolPlan, all_slots, plan_pools, pools_bytes
from haversack.offload.tier import tier_host_bytes, workspace_bytes
from haversack.quant.gguf import ModelGeometry, read_geometry

AUTO_RAM = "auto"  # a budget that follows the memory other programs leave

_MIB = 1024 * 1024
_USUAL_PROCESS_BYTES = 96 * _MIB  # more than the interpreter and the libraries take
RESERVE_RAM_BYTES = 2048 * _MIB  # left to the rest of the system where no budget is given


def plan(
    path: str | Path | ModelGeometry,
    ram: str | int | Budget | None = None,
    ctx: int | None = None,
    threads: int | None = None,
    *,
    vram: Vram = None,
    placement: str = FREE,
    **rarer: Unpack[ShapeSettings],
) -> Plan:
    """Plan how the model at `path` would run in `ram`; reads its header and allocates nothing.

    `path` may be a name on the Hugging Face hub (see `edge.hub`): what is not in its cache is
    downloaded. Or it is the geometry of a model, read before.

    `ram` is a size ("6GiB") or a number of bytes for this model and what the process itself takes,
    or a `Budget` that several models share; by default the free memory of the machine less 2 GiB,
    and with "auto" this too, but while the model is open it follows what other programs leave.
    The memory of other open models is not in it: they have budgets of their own. `ctx` defaults to
    4096 tokens or what the model was trained for, `threads` to the cores that may be used (see
    `haversack doctor`), `batch` is the prompt tokens computed at once, `sequences` how many texts
    are held at the same time, each with a context of `ctx` tokens, and `kv_type` the block type of
    the context's keys and values: "f16", or "q8_0" or "q4_0", which take less and are not exact.

    `vram` is memory of devices, beside `ram`: a size of the only GPU, "auto" (what is
    free on all of them, less 1 GiB), "NAME=SIZE", several of these, or sizes by name. A `Budget`
    says it itself. `placement` is "free", where the experts lie there that are used most, and move
    as the text changes, or "fixed", where the same ones lie there each time. `trunk` says whether
    the last layers, with their keys and values, lie on the first device, as many as it holds:
    "auto" (on a GPU of this computer), "device" or "host".
    Raises BudgetError with the floor, ModelFileError, PromptError, UnitError, and DeviceError for a
    device that is not there or whose server does not answer.
    """
    placement = checked_placement(placement)
    asked_trunk = checked_trunk(rarer.get("trunk", AUTO_TRUNK))
    if not (ram.asks_devices if isinstance(ram, Budget) else asked_vram(vram)):
        _refuse_without_devices(placement, asked_trunk)
    geometry, ram_bytes, budgets = _geometry_of(path), _ram_bytes(ram), _device_budgets(ram, vram)
    process_bytes = ledger.process_bytes()  # measured before the dry run allocates
    model = LlamaModel(geometry.path, dry=True)
    try:
        shape = context_shape(ctx, threads, model.trained_ctx_tokens, **rarer)
        refuse_boundless(shape, ram_bytes)
        needs, num_layers = memory_needs(model, shape), model.num_layers
        sampling_bytes = _sampling_bytes(model.vocabulary, shape.sequences)
        draft_bytes = WHOLE.ngram_bytes(shape) if model.drops_parts else 0
    finally:
        model.close()
        host.give_back_freed_memory()
    holder = [each for each in budgets[:1] if may_hold_trunk(each.device, asked_trunk)]
    num_layers = num_layers if holder else 0
    if any(is_remote(each.device) for each in holder):
        placement = FIXED  # llama.cpp computes over the connection that copies would go through
    devices, trunk = _on_devices(geometry, shape, budgets, num_layers, placement)
    needs = needs if trunk is None else trunk.needs
    costs = _costs(geometry, shape, needs, process_bytes, sampling_bytes, draft_bytes)
    costs = _with_tiers(costs, geometry, shape, sum(device.num_slots > 0 for device in devices))
    planned = _spend(geometry, shape, costs, ram_bytes, Placement(devices, placement))
    if isinstance(ram, Budget):
        return replace(planned, shared=ram)
    return replace(planned, adapts=ram == AUTO_RAM)


def _on_devices(
    geometry: ModelGeometry,
    shape: ContextShape,
    budgets: Sequence[DeviceBudget],
    num_layers: int,
    placement: str,
) -> tuple[tuple[DevicePlan, ...], TrunkPlan | None]:
    """Return how the budgets are spent, the first one on as many of `num_layers` layers and the
    output as it holds. Raises BudgetError."""
    whole = all_slots(geometry.layers, geometry.num_experts_per_tok)
    scratch_bytes = workspace_bytes(geometry.layers, shape.batch_tokens) if whole else 0
    trunk = None
    if num_layers:
        room_bytes = budgets[0].limit_bytes - least_bytes(whole, scratch_bytes)
        device = budgets[0].device
        trunk = plan_trunk(geometry.path, shape, device, room_bytes, num_layers + 1)
    return place_experts(whole, budgets, scratch_bytes, trunk, placement), trunk


def _refuse_without_devices(placement: str, trunk: str) -> None:
    """Raise PromptError for what says something of devices only."""
    for flag, given, of_devices in (("placement", placement, FIXED), ("trunk", trunk, DEVICE)):
        if given == of_devices:
            raise PromptError(
                f"--{flag} is {given}, but no device is given: give --vram, or leave it out"
            )


def _device_budgets(ram: str | int | Budget | None, vram: Vram) -> tuple[DeviceBudget, ...]:
    """Return what may be taken of devices. Raises PromptError, BudgetError, UnitError."""
    asks = asked_vram(vram)
    if not isinstance(ram, Budget):
        return device_budgets(asks)
    if asks:
        raise PromptError("the budget says vram already: give either")
    left = [VramAsk(name, memory.left_bytes) for name, memory in ram.devices.items()]
    return device_budgets(left)


def _geometry_of(model: str | Path | ModelGeometry) -> ModelGeometry:
    if isinstance(model, ModelGeometry):
        return model
    if not isinstance(model, str | os.PathLike):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise ModelFileError(f"the model is {model!r}: give the path of a GGUF file")
    return read_geometry(local_path(model))


def with_drafts(
    planned: Plan,
    draft_from: Path | None,
    is_off: bool = False,
    most_bytes: int | None = None,
    learns: bool = False,
) -> Plan:
    """Return the plan with the bytes of what drafts: the model `draft_from`, if given, and what
    needs no model, or nothing at all if it `is_off`. What it does not take goes to experts, so a
    drafter's context holds whole texts only where all experts are in memory with it. With
    `most_bytes` all of it is made smaller until it takes no more. If the drafter `learns` from the
    texts, the process for that is part of the plan.

    Raises BudgetError with what the drafter needs where it leaves less than the floor, and where
    `most_bytes` do not suffice, ModelFileError for a model that cannot draft, and PromptError for a
    plan with low copies.
    """
    if planned.precision is not None:
        raise PromptError("the plan has slots of two precisions already: plan what drafts before")
    if is_off or not planned.costs.draft_bytes:
        most_bytes = None
    shape = planned.shape
    if draft_from is None:
        return _with_drafting(planned, plan_drafting(None, shape, WHOLE, most_bytes), is_off)
    learning = replace(WHOLE, learner_bytes=learner_bytes(draft_from) if learns else 0)
    short = replace(learning, window_tokens=SHORT_WINDOW_TOKENS)
    with suppress(BudgetError):
        drafting = plan_drafting(draft_from, shape, learning, most_bytes)
        whole = _with_drafting(planned, drafting, is_off)
        if whole.mode != STREAMED:
            return whole
    return _with_drafting(planned, plan_drafting(draft_from, shape, short, most_bytes), is_off)


def _with_drafting(planned: Plan, drafting: Drafting, is_off: bool) -> Plan:
    drafter, has_ngrams = drafting.drafter, planned.costs.draft_bytes and not is_off
    costs = replace(
        planned.costs,
        drafter_bytes=0 if drafter is None else drafter.num_bytes,
        draft_bytes=drafting.sizes.ngram_bytes(planned.shape) if has_ngrams else 0,
    )
    if costs == planned.costs:
        return planned
    try:
        spent = _spend(planned.geometry, planned.shape, costs, planned.ram_bytes, planned.placed)
    except BudgetError as error:
        if drafter is None or planned.ram_bytes < planned.floor_bytes:
            raise
        raise BudgetError(
            f"{drafter} and leaves {planned.path.name} less than it needs: {error}; or draft"
            " without a model (--speculate auto)",
            need_bytes=error.need_bytes,
            have_bytes=error.have_bytes,
        ) from error
    kept = {name: getattr(planned, name) for name in ("leaning", "shared", "adapts")}
    return replace(spent, drafter=drafter, draft_sizes=drafting.sizes, **kept)


def with_ram(planned: Plan, ram_bytes: int) -> Plan:
    """Return the plan of the same model in another budget. Raises BudgetError with the floor."""
    if planned.precision is not None and ram_bytes < planned.full_bytes:
        pools = planned.pools_in(ram_bytes - planned.fixed_bytes)
        slot_total = pools_bytes(pools)
        if planned.fixed_bytes + slot_total <= ram_bytes:
            return replace(planned, ram_bytes=ram_bytes, pools=pools, slot_bytes=slot_total)
    spent = _spend(planned.geometry, planned.shape, planned.costs, ram_bytes, planned.placed)
    return replace(spent, drafter=planned.drafter, draft_sizes=planned.draft_sizes)


def streamed(planned: Plan, share: float = 1.0) -> Plan:
    """Return the plan with slots for `share` of the experts, for measuring and testing. The budget
    grows if it must."""
    whole = planned.pools_in(2 * planned.expert_bytes)
    pools = planned.pools_in(int(share * pools_bytes(whole)))
    slot_total = pools_bytes(pools)
    ram_bytes = max(planned.ram_bytes, planned.fixed_bytes + slot_total)
    return replace(planned, mode=STREAMED, pools=pools, slot_bytes=slot_total, ram_bytes=ram_bytes)


def _ram_bytes(ram: str | int | Budget | None) -> int:
    if isinstance(ram, Budget):
        return ram.room_bytes
    if ram not in (None, AUTO_RAM):
        return size_bytes(ram)
    available_bytes = max(0, probe_ram().available_bytes - ledger.untouched_bytes())
    return max(available_bytes - RESERVE_RAM_BYTES, available_bytes // 2)


def _sampling_bytes(vocabulary: Vocabulary, sequences: int) -> int:
    """Return the bytes for choosing tokens, with a grammar too, because a call may bring one at any
    time. All sequences share the tables. Each keeps the logits after its prompt, and the logits of
    a verification are copied."""
    num_tokens = vocabulary.num_tokens
    rows_bytes = (sequences + MOST_ROWS) * LOGIT_BYTES * num_tokens
    if not vocabulary.has_text:
        return chain_bytes(num_tokens) + rows_bytes
    trie = trie_bytes(num_tokens, vocabulary.text_bytes())
    return chain_bytes(num_tokens) + rows_bytes + trie


def _costs(
    geometry: ModelGeometry,
    shape: ContextShape,
    needs: MemoryNeeds,
    process_bytes: int,
    sampling_bytes: int,
    draft_bytes: int,
) -> Costs:
    resident = streamed = 0
    if geometry.layers:
        num_experts = max(layer.num_experts for layer in geometry.layers)
        all_slots = sum(layer.num_experts for layer in geometry.layers)
        used = geometry.num_experts_per_tok
        scratch = scratch_bytes(geometry.layers, shape.batch_tokens, used)
        resident += scratch + product_scratch(num_experts, shape.batch_tokens * used)
        streamed += scratch + product_scratch(all_slots, used)
    return Costs(
        trunk_bytes=geometry.trunk_bytes - sum(each.weight_bytes for each in needs.devices),
        kv_bytes=needs.kv_bytes,
        reserve_bytes=process_bytes + VOCABULARY_FACTOR * geometry.header_bytes,
        process_bytes=process_bytes,
        graph_bytes=needs.compute_bytes,
        sampling_bytes=sampling_bytes,
        draft_bytes=draft_bytes,
        drafter_bytes=0,
        resident_scratch_bytes=resident,
        streamed_scratch_bytes=streamed,
    )


def _with_tiers(
    costs: Costs, geometry: ModelGeometry, shape: ContextShape, num_tiers: int
) -> Costs:
    """Return them with the host memory of device tiers."""
    if not num_tiers:
        return costs
    used = geometry.num_experts_per_tok
    more_bytes = num_tiers * tier_host_bytes(geometry.layers, shape.batch_tokens, used)
    return replace(costs, streamed_scratch_bytes=costs.streamed_scratch_bytes + more_bytes)


def _spend(
    geometry: ModelGeometry,
    shape: ContextShape,
    costs: Costs,
    ram_bytes: int,
    placed: Placement,
) -> Plan:
    full_bytes = costs.fixed_bytes(RESIDENT) + geometry.expert_bytes
    floor_slots = pools_bytes(plan_pools(geometry.layers, geometry.num_experts_per_tok, 0))
    floor_bytes = costs.fixed_bytes(STREAMED) + floor_slots
    if not placed.has_experts:
        floor_bytes = min(full_bytes, floor_bytes) if geometry.layers else full_bytes
    mode, pools, slot_total = _experts_in(geometry, costs, ram_bytes, placed)
    if ram_bytes < floor_bytes:
        raise _below_floor(geometry, costs, floor_bytes, ram_bytes)
    return Plan(
        path=geometry.path,
        architecture=geometry.architecture,
        mode=mode,
        shape=shape,
        ram_bytes=ram_bytes,
        trunk_bytes=costs.trunk_bytes,
        kv_bytes=costs.kv_bytes,
        compute_bytes=costs.compute_bytes(mode),
        sampling_bytes=costs.sampling_bytes,
        draft_bytes=costs.draft_bytes,
        drafter_bytes=costs.drafter_bytes,
        scratch_bytes=costs.scratch_bytes(mode),
        reserve_bytes=costs.reserve_bytes,
        process_bytes=costs.process_bytes,
        slot_bytes=slot_total,
        expert_bytes=geometry.expert_bytes,
        floor_bytes=floor_bytes,
        full_bytes=full_bytes,
        pools=pools,
        geometry=geometry,
        costs=costs,
        placed=placed,
    )


def _experts_in(
    geometry: ModelGeometry, costs: Costs, ram_bytes: int, placed: Placement
) -> tuple[str, tuple[PoolPlan, ...], int]:
    """Return the mode, the pools of slots if there are any, and the bytes of experts in RAM."""
    if not geometry.layers:
        return DENSE, (), 0
    if not placed.has_experts and ram_bytes >= costs.fixed_bytes(RESIDENT) + geometry.expert_bytes:
        return RESIDENT, (), geometry.expert_bytes
    pools = placed.pools_in(geometry, ram_bytes - costs.fixed_bytes(STREAMED))
    return STREAMED, pools, pools_bytes(pools)


def _below_floor(
    geometry: ModelGeometry, costs: Costs, floor_bytes: int, ram_bytes: int
) -> BudgetError:
    knobs = "lower --ctx or --batch, or raise --ram"
    if costs.process_bytes > _USUAL_PROCESS_BYTES:
        knobs = f"free what else the process holds, {knobs}"
    named_bytes = costs.trunk_bytes + costs.kv_bytes + costs.process_bytes + costs.drafter_bytes
    rest_bytes = floor_bytes - named_bytes
    drafter = f" the drafter {format_bytes(costs.drafter_bytes)}," if costs.drafter_bytes else ""
    return BudgetError(
        f"{geometry.path.name} needs at least {format_need(floor_bytes)} ({floor_bytes} bytes:"
        f" trunk {format_bytes(costs.trunk_bytes)}, KV cache {format_bytes(costs.kv_bytes)},"
        f" the process itself {format_bytes(costs.process_bytes)},{drafter}"
        f" computing and the fewest experts {format_bytes(rest_bytes)}),"
        f" the budget is {format_bytes(ram_bytes)}: {knobs}",
        need_bytes=floor_bytes,
        have_bytes=ram_bytes,
    )
