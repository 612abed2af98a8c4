"""What `haversack plan` shows: where the bytes go, how fast it will be, and what changes that."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from haversack.devices.errors import BudgetError
from haversack.devices.memory import beyond_ram
from haversack.devices.units import format_bytes
from haversack.edge.console import notice, write_table, write_text
from haversack.edge.forecasting import LIKELY, MEASURED, ROUGH, Facts, Forecast, forecast_of, shown
from haversack.edge.model_plan import STREAMED, Plan
from haversack.edge.placement_view import reasons
from haversack.edge.planner import with_ram

_GROWTH = (1.25, 1.5, 2.0)  # larger budgets that are tried
_WORTH = 1.1  # times as fast, or it is not told
_CONTEXTS = (0.5, 1, 2, 4, 8)  # of the one that is planned
_LEAST_CTX_TOKENS = 512

_WHY = {
    MEASURED: "this model ran on this computer",
    LIKELY: "other models ran on this computer, or this one with all experts in memory",
    ROUGH: "no model ran here yet, so computing counts as fast as an idle computer reads memory",
}


@dataclass(frozen=True)
class PlannedContext:
    """A context that could be planned: what it takes, and what that leaves for experts."""

    ctx_tokens: int
    planned: Plan
    forecast: Forecast | None

    def to_dict(self) -> dict[str, Any]:
        """Return its figures as plain values."""
        return {
            "ctx": self.ctx_tokens,
            "kv_bytes": self.planned.kv_bytes,
            "mode": self.planned.mode,
            "slot_bytes": self.planned.slot_bytes,
            "slots": sum(pool.num_slots for pool in self.planned.pools),
            "tok_s": None if self.forecast is None else self.forecast.tok_s,
        }


class PlanView:
    """A plan, its forecast, and both for other contexts and budgets. `replan` plans another number
    of tokens of context."""

    def __init__(self, planned: Plan, facts: Facts, replan: Callable[[int], Plan]) -> None:
        self.planned, self._facts, self._replan = planned, facts, replan
        self.forecast = forecast_of(planned, facts)

    def contexts(self) -> list[PlannedContext]:
        """Return contexts from half as long to as long as the budget holds, at most eight times."""
        found = list[PlannedContext]()
        with suppress(BudgetError):
            for factor in _CONTEXTS:
                ctx_tokens = int(factor * self.planned.shape.ctx_tokens)
                if factor >= 1 or ctx_tokens >= _LEAST_CTX_TOKENS:
                    planned = self.planned if factor == 1 else self._replan(ctx_tokens)
                    forecast = forecast_of(planned, self._facts)
                    found.append(PlannedContext(ctx_tokens, planned, forecast))
        return found

    def advice(self) -> list[str]:
        """Return what would make it faster, a line each."""
        return [] if self.forecast is None else list(self._advice(self.forecast))

    def _advice(self, now: Forecast) -> Iterator[str]:
        if self.planned.mode != STREAMED:
            return
        full_bytes = self.planned.full_bytes
        budgets = [int(factor * self.planned.ram_bytes) for factor in _GROWTH]
        for ram_bytes in [*(num for num in budgets if num < full_bytes), full_bytes]:
            then = forecast_of(with_ram(self.planned, ram_bytes), self._facts)
            if then is not None and then.tok_s > _WORTH * now.tok_s:
                yield f"--ram {format_bytes(ram_bytes)}: {shown(then.tok_s)} tok/s"
        waits = now.wait_s_per_token * now.tok_s
        if waits > 0.25 and self.planned.precision is None:
            yield (
                f"the drive takes {waits:.0%} of a token's time: `haversack prepare` and --fidelity"
                " balanced read about half as much; a faster drive helps as well"
            )

    def to_dict(self) -> dict[str, Any]:
        """Return the plan with all that is shown of it, as plain values."""
        return {
            **self.planned.to_dict(),
            "warning": beyond_ram(self.planned.ram_bytes) or None,
            "reasons": reasons(self.planned),
            "forecast": None if self.forecast is None else self.forecast.to_dict(),
            "contexts": [each.to_dict() for each in self.contexts()],
            "advice": self.advice(),
        }

    def show(self) -> None:
        """Write it to stdout, for people."""
        planned = self.planned
        for told in filter(None, (beyond_ram(planned.ram_bytes), planned.beyond_training)):
            notice(f"haversack: {told}")
        self._show_bytes()
        self._show_speed()
        contexts = self.contexts()
        if len(contexts) > 1:
            rows = [_row(each) for each in contexts]
            write_table("What a longer context costs", (">ctx", ">KV", ">experts", ">tok/s"), rows)

    def _show_bytes(self) -> None:
        head, *_, conclusion = str(self.planned).splitlines()
        _show_memory(head, self.planned.rows())
        for device in self.planned.devices:
            _show_memory(f"{device.name}: {device.description}", device.rows())
        for line in reasons(self.planned):
            write_text(line + "\n")
        write_text(conclusion.strip() + "\n")

    def _show_speed(self) -> None:
        found = self.forecast
        if found is None:
            write_text("no forecast: the drive under the model is not known\n")
            return
        write_text(f"forecast {found}, {found.confidence}: {_WHY[found.confidence]}\n")
        if found.bytes_read_per_token:
            write_text(
                f"a token computes for {1000 * found.compute_s_per_token:.3g} ms and reads"
                f" {format_bytes(int(found.bytes_read_per_token))} at"
                f" {format_bytes(int(found.drive_bytes_s))}/s ({found.hit_rate:.0%} hits)\n"
            )
        for device, share in zip(self.planned.devices, found.on_devices, strict=False):
            write_text(f"{device.name} computes {share:.0%} of the uses of experts\n")
        if found.prefill_tok_s:
            write_text(f"prompts are computed at {shown(found.prefill_tok_s)} tok/s\n")
        for line in self.advice():
            write_text(f"faster: {line}\n")


def _show_memory(title: str, parts: Sequence[tuple[str, int]]) -> None:
    """Write a table of the parts of one memory; the last is its budget."""
    _, budget_bytes = parts[-1]
    rows = [
        (name, format_bytes(num), f"{num:,}", f"{num / budget_bytes:.1%}") for name, num in parts
    ]
    write_table(title, ("memory", ">size", ">bytes", ">share"), rows)


def _row(each: PlannedContext) -> tuple[str, str, str, str]:
    planned = each.planned
    share = min(1.0, planned.slot_bytes / max(1, planned.expert_bytes))
    tok_s = "" if each.forecast is None else shown(each.forecast.tok_s)
    return f"{each.ctx_tokens:,}", format_bytes(planned.kv_bytes), f"{share:.0%}", tok_s
