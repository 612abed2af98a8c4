"""The plan of a model: how a budget is spent on it, in bytes that add up."""

from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from haversack.cache.routing import Leaning
from haversack.devices.budget import MemoryBudget
from haversack.devices.llama import ContextShape
from haversack.devices.units import format_bytes, format_need
from haversack.edge.draft_sizes import WHOLE, DraftSizes
from haversack.edge.drafter_plan import DrafterPlan
from haversack.edge.placement import IN_RAM, DevicePlan, Placement
from haversack.edge.shared_budget import Budget
from haversack.offload.pool import PoolPlan, slot_bytes
from haversack.offload.precision import Precision
from haversack.quant.gguf import ModelGeometry
from haversack.quant.lowbit import LowCopies

RESIDENT, STREAMED, DENSE = "resident", "streamed", "dense"

EXACT = "exact"  # the fidelity without low copies


@dataclass(frozen=True)
class Costs:
    """The bytes that a model needs beside its experts' slots."""

    trunk_bytes: int
    kv_bytes: int
    reserve_bytes: int
    process_bytes: int
    graph_bytes: int
    sampling_bytes: int
    draft_bytes: int
    drafter_bytes: int
    resident_scratch_bytes: int
    streamed_scratch_bytes: int

    def scratch_bytes(self, mode: str) -> int:
        return self.streamed_scratch_bytes if mode == STREAMED else self.resident_scratch_bytes

    def compute_bytes(self, mode: str) -> int:
        own_bytes = self.sampling_bytes + self.draft_bytes + self.scratch_bytes(mode)
        return self.graph_bytes + own_bytes

    def fixed_bytes(self, mode: str) -> int:
        own_bytes = self.trunk_bytes + self.kv_bytes + self.drafter_bytes
        return own_bytes + self.reserve_bytes + self.compute_bytes(mode)


@dataclass(frozen=True)
class Plan:
    """How `ram_bytes` are spent on one model. All figures are bytes and add up to the budget.

    `trunk_bytes` are the weights without the routed experts, `kv_bytes` the context's cache.
    `compute_bytes` are scratch; they include `sampling_bytes` for samplers and grammars,
    `draft_bytes` for what drafts come from without a model, and `scratch_bytes` for products with
    experts. `drafter_bytes` are a model that drafts, whole; `draft_sizes` bound what can be made
    smaller of both.
    `reserve_bytes` are all else; they include `process_bytes` of the process itself without its
    open models. `slot_bytes` are room for experts (for all of them in mode "resident"),
    `headroom_bytes` stay free. `floor_bytes` is the least budget that works, `full_bytes` the least
    with which no expert is streamed. With a `shared` budget, `ram_bytes` are what its open models
    leave. With `adapts`, the budget follows the memory that other programs leave (`edge.pressure`).
    `fidelity` names how near to exact the model is computed; with `precision`, slots hold copies of
    two precisions. With `leaning`, the choice of experts leans to those in slots. `placed` says
    which experts lie on devices, in bytes of their own.
    """

    path: Path
    architecture: str
    mode: str
    shape: ContextShape
    ram_bytes: int
    trunk_bytes: int
    kv_bytes: int
    compute_bytes: int
    sampling_bytes: int
    draft_bytes: int
    drafter_bytes: int
    scratch_bytes: int
    reserve_bytes: int
    process_bytes: int
    slot_bytes: int
    expert_bytes: int
    floor_bytes: int
    full_bytes: int
    pools: tuple[PoolPlan, ...]
    geometry: ModelGeometry
    costs: Costs = field(compare=False, repr=False)
    drafter: DrafterPlan | None = None
    draft_sizes: DraftSizes = WHOLE
    fidelity: str = EXACT
    precision: Precision | None = None
    leaning: Leaning | None = None
    placed: Placement = IN_RAM
    shared: Budget | None = field(default=None, compare=False, repr=False)
    adapts: bool = field(default=False, compare=False)

    @property
    def devices(self) -> tuple[DevicePlan, ...]:
        """The plans of devices that hold experts too."""
        return self.placed.devices

    @property
    def placement(self) -> str:
        """Whether experts move to devices while the model is open ("free") or not ("fixed")."""
        return self.placed.how

    @property
    def is_exclusive(self) -> bool:
        """Whether an expert on a device has no slot in RAM: there is no room for all of them."""
        return any(pool.num_slots < pool.num_experts * len(pool.layers) for pool in self.pools)

    @property
    def low(self) -> LowCopies | None:
        """The low copies that its slots may hold."""
        return None if self.precision is None else self.precision.low

    def pools_in(self, room_bytes: int) -> tuple[PoolPlan, ...]:
        """Return pools of slots of this plan's levels in at most `room_bytes`, but never less than
        the floor."""
        return self.placed.pools_in(self.geometry, room_bytes, self.low)

    def without_functions(self) -> "Plan":
        """Return a plan that another process understands: without what only runs in this one."""
        precision = self.precision and replace(self.precision, fitted=None)
        return replace(self, precision=precision, shared=None)

    @property
    def low_share(self) -> float:
        """Return the share of experts that have a low copy; 1 where none is wanted."""
        return 1.0 if self.low is None else self.low.share(self.geometry)

    @property
    def planned_bytes(self) -> int:
        """Return the most that this model and the process itself will take."""
        return self.budget().reserved_bytes

    @property
    def fixed_bytes(self) -> int:
        """Return what of `planned_bytes` is not for experts."""
        return self.planned_bytes - self.slot_bytes

    @property
    def own_bytes(self) -> int:
        """Return the most that this model will take."""
        parts = (self.trunk_bytes, self.kv_bytes, self.drafter_bytes, self.compute_bytes)
        return sum(parts) + self.slot_bytes + self.reserve_bytes - self.process_bytes

    @property
    def graph_bytes(self) -> int:
        """Return what llama.cpp's graphs take of `compute_bytes`."""
        others = self.sampling_bytes + self.draft_bytes + self.scratch_bytes
        return self.compute_bytes - others

    @property
    def headroom_bytes(self) -> int:
        return self.ram_bytes - self.planned_bytes

    @property
    def beyond_training(self) -> str:
        """Return in a line that the context is longer than what the model was trained with; empty
        if it is not."""
        ctx_tokens, trained_tokens = self.shape.ctx_tokens, self.geometry.trained_ctx_tokens
        if not trained_tokens or ctx_tokens <= trained_tokens:
            return ""
        return (
            f"{self.path.name} was trained with {trained_tokens} tokens of context, this one has"
            f" {ctx_tokens}: what follows after {trained_tokens} tokens may make no sense; lower"
            " --ctx, or read on with care"
        )

    def parts(self) -> dict[str, int]:
        """Return what this model will take outside slots, by name; parts taken in full come
        first."""
        return {
            "trunk": self.trunk_bytes,
            "experts": 0 if self.mode == STREAMED else self.slot_bytes,
            "kv": self.kv_bytes,
            **({} if self.drafter is None else self.drafter.parts()),
            "vocabulary": self.reserve_bytes - self.process_bytes,
            "compute": self.graph_bytes,
            "scratch": self.scratch_bytes,
            "sampling": self.sampling_bytes,
            "drafts": self.draft_bytes,
        }

    def budget(self) -> MemoryBudget:
        """Return the plan as named reservations. Raises BudgetError if they exceed the budget."""
        budget = MemoryBudget("ram", self.ram_bytes, knob="raise --ram")
        budget.reserve("process", self.process_bytes)
        for name, num_bytes in self.parts().items():
            budget.reserve(name, num_bytes)
        budget.reserve("slots", self.slot_bytes if self.mode == STREAMED else 0)
        return budget

    def to_dict(self) -> dict[str, Any]:
        """Return every figure, and the pools of slots, as values that JSON can hold."""
        figures = {name: value for name, value in vars(self).items() if name.endswith("_bytes")}
        return {
            "model": str(self.path),
            "architecture": self.architecture,
            "mode": self.mode,
            "fidelity": self.fidelity,
            "low_share": None if self.low is None else self.low_share,
            "route_bias": self.leaning.bias if self.leaning else 0.0,
            "ctx": self.shape.ctx_tokens,
            "trained_ctx": self.geometry.trained_ctx_tokens,
            "batch": self.shape.batch_tokens,
            "threads": self.shape.threads,
            "sequences": self.shape.sequences,
            "kv_type": self.shape.kv_type,
            "drafter": None if self.drafter is None else self.drafter.to_dict(),
            "draft_sizes": asdict(self.draft_sizes),
            "placement": self.placement,
            "devices": [device.to_dict() for device in self.devices],
            **figures,
            "planned_bytes": self.planned_bytes,
            "headroom_bytes": self.headroom_bytes,
            "pools": [
                {
                    "layers": len(pool.layers),
                    "experts": pool.num_experts,
                    "slots": pool.num_slots,
                    "slot_bytes": slot_bytes(pool.shape),
                }
                for pool in self.pools
            ],
        }

    def __str__(self) -> str:
        rows = self.rows()
        many = f", {self.shape.sequences} sequences" if self.shape.sequences > 1 else ""
        context = f"{self.shape.ctx_tokens} tokens of context{many}"
        lines = [f"{self.path.name}: {self.architecture}, {context}"]
        lines += [f"  {name:<10}{format_bytes(num_bytes):>12}" for name, num_bytes in rows]
        return "\n".join([*lines, f"  {self._summary()}"])

    def rows(self) -> list[tuple[str, int]]:
        """Return what people read of it, by name; the last is the budget."""
        return [
            ("trunk", self.trunk_bytes),
            ("KV cache", self.kv_bytes),
            *([] if self.drafter is None else [("drafter", self.drafter_bytes)]),
            ("compute", self.compute_bytes),
            ("process", self.reserve_bytes),
            ("experts", self.slot_bytes),
            ("free", self.headroom_bytes),
            ("budget", self.ram_bytes),
        ]

    def _summary(self) -> str:
        if self.mode == DENSE:
            return "no routed experts: the model runs plainly, all of it in memory"
        if self.mode == RESIDENT:
            return "all experts fit: nothing is streamed"
        share = self.slot_bytes / self.expert_bytes
        more_bytes = 1024 * self.kv_bytes / self.shape.ctx_tokens
        copies = "" if self.low is None else f", {self.fidelity}: low copies are {self.low.source}"
        copies += f" of {self.low_share:.1%} of the experts" if self.low_share < 1 else ""
        beside = "".join(f", {each.name} for {each.share:.0%}" for each in self.devices)
        return (
            f"slots for {min(share, 1):.0%} of the experts{beside}{copies}; least --ram"
            f" {format_need(self.floor_bytes)}, all in memory from {format_need(self.full_bytes)};"
            f" 1024 more tokens of context cost {more_bytes / self.expert_bytes:.2%} of the experts"
        )
