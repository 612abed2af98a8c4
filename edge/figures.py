"""The figures of a model: what its passes computed and took, in all and for one call."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from haversack.devices.memory import PeakMeter
from haversack.edge.call import Call
from haversack.edge.decoding import DecodeMeter
from haversack.edge.extra_reads import ExtraReads
from haversack.edge.forecasting import Facts, Forecast, forecast_of
from haversack.edge.learning.messages import NOTHING
from haversack.edge.model_plan import Plan
from haversack.edge.speculate import Speculation
from haversack.edge.stats import Stats
from haversack.offload.engine import Engine


class Figures:
    """Counts of the passes that an engine has computed since it was loaded."""

    def __init__(
        self, engine: Engine, planned: Plan, speculation: Speculation, peak: PeakMeter
    ) -> None:
        """`peak` meters the process."""
        self._engine, self.plan, self._peak = engine, planned, peak
        self._speculation, self.decoding = speculation, DecodeMeter(engine)
        self.facts: Facts | None = None  # what its forecasts are made of
        self._prompt_tokens = self._decoded_tokens = 0
        self._prefill_s = self._decode_s = 0.0
        self._extra_reads = ExtraReads()
        peak.look()

    def count_prompt(self, call: Call, num_tokens: int, pass_s: float) -> None:
        """Count a batch of a prompt."""
        call.prompt_tokens += num_tokens
        call.prefill_s += pass_s
        self._prompt_tokens += num_tokens
        self._prefill_s += pass_s
        self.decoding.count_prompt(num_tokens, pass_s)
        self._peak.look()

    def count_decoded(
        self, decoded: Sequence[tuple[Call, int]], pass_s: float, num_drafted: int = 0
    ) -> None:
        """Count a pass with tokens that are no prompt's, so many of each call, and with drafted
        rows."""
        num_tokens = sum(number for _, number in decoded)
        num_misses = self.decoding.count(num_tokens, pass_s)
        self._extra_reads.note(num_tokens, num_drafted, num_misses)
        for call, num_tokens in decoded:
            call.decoded_tokens += num_tokens
            call.decode_s += pass_s
            self._decoded_tokens += num_tokens
        self._decode_s += pass_s

    @property
    def forecast(self) -> Forecast | None:
        """What is forecast for the plan as it is now."""
        return None if self.facts is None else forecast_of(self.plan, self.facts)

    def spent(self, call: Call, before: Stats) -> Stats:
        """Return what the call took: its own tokens and passes, and what the engine did since
        `before`."""
        return replace(
            self.stats().since(before),
            prompt_tokens=call.prompt_tokens,
            tokens=call.decoded_tokens,
            prefill_s=call.prefill_s,
            decode_s=call.decode_s,
        )

    def stats(self) -> Stats:
        """Return everything since loading."""
        forecast, decoded = self.forecast, self.decoding.total
        return Stats(
            prompt_tokens=self._prompt_tokens,
            tokens=self._decoded_tokens,
            prefill_s=self._prefill_s,
            decode_s=self._decode_s,
            decode_hits=decoded.hits,
            decode_misses=decoded.misses,
            decode_bytes_read=decoded.bytes_read,
            decode_wait_s=decoded.wait_s,
            forecast_tok_s=forecast.tok_s if forecast else 0.0,
            forecast_hit_rate=forecast.hit_rate if forecast else 0.0,
            ram_budget_bytes=self.plan.ram_bytes,
            ram_planned_bytes=self.plan.planned_bytes,
            ram_peak_bytes=self._peak.look(),
            **self._of_experts(),
            **self._of_drafts(),
        )

    def _of_experts(self) -> dict[str, Any]:
        """What was done to stream experts."""
        experts, files = self._engine.experts, self._engine.files
        if experts is None or files is None:
            return {}
        counts, levels = experts.prefetch_counts(), experts.level_counts()
        tiers = experts.tier_counts()
        return {
            "hits": experts.hits,
            "misses": experts.misses,
            "uses_high": levels.high,
            "uses_low": levels.low,
            "uses_skipped": levels.skipped,
            "uses_leaned": levels.leaned,
            "upgraded": levels.upgraded,
            "saved_bytes": levels.saved_bytes,
            "device_hits": sum(tier.hits for tier in tiers),
            "device_promoted": sum(tier.promoted for tier in tiers),
            "device_moved_bytes": sum(tier.moved_bytes for tier in tiers),
            "bytes_read": files.bytes_read,
            "read_s": files.busy_s,
            "wait_s": files.wait_s,
            "own_s": experts.own_s,
            "prefetched": counts.started,
            "prefetched_right": counts.right,
            "prefetchable": counts.possible,
            "needed": counts.needed,
            "prefetching": experts.is_prefetching,
        }

    def _of_drafts(self) -> dict[str, Any]:
        """What was drafted, and learnt for it."""
        speculation, learner = self._speculation, self._speculation.learner
        learnt = NOTHING if learner is None else learner.progress
        return {
            "draft_rounds": speculation.num_rounds,
            "draft_rows": speculation.num_rows,
            "drafted": speculation.num_drafted,
            "draft_accepted": speculation.num_accepted,
            "draft_extra_reads": self._extra_reads.number,
            "draft_saved_s": speculation.gate.saved_s,
            "not_drafting": speculation.why_closed,
            "draft_steps": learnt.num_steps,
            "draft_right_before": learnt.right_before,
            "draft_right_after": learnt.right_after,
            "not_learning": "" if learner is None else learner.why_not,
        }
