"""Counts of a model's work, time and memory since it was loaded."""

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Stats:
    """Totals since loading, or the difference of two of them.

    `hits` and `misses` count uses of experts (one for each token and layer in decode, one for
    each batch and layer in prefill). `bytes_read` counts the bytes of experts read for misses, by
    prefetches and at a warm start. `disk_bytes_s` is the rate while at least one read was under
    way, `wait_s` the time the model waited for reads, `own_s` the time of the engine's own steps
    without waits and products. `ram_peak_bytes` is the most anonymous memory of the whole process
    since loading began, including memory that was freed within a pass (see `PeakMeter`).

    `uses_high`, `uses_low` and `uses_skipped` are the same uses by the precision of the copy that
    was used, if any; a skipped use is a miss. `uses_leaned` counts the experts that rows used only
    because these were in memory. `upgraded` counts low copies that the idle drive made whole,
    `saved_bytes` the bytes that were not read because of low copies and skipped experts.

    `device_hits` are the hits that found the expert on a device, where it was computed;
    `device_promoted` experts moved to devices with `device_moved_bytes`. `Model.devices` has them
    for each device.

    `prefetched` counts experts read before their layer chose, `prefetched_right` those of them that
    the layer then chose. `prefetchable` counts what prefetches could have brought: in layers whose
    choice was predicted, the chosen experts that were neither in memory nor being read when the
    prediction was made. `needed` counts the chosen experts that had to be read: those without a
    slot before a prefetch gave them one. `prefetching` says whether prefetching is on now: it is
    off while it does not pay, and while routing is watched or forced.

    `draft_rounds` counts passes with drafted tokens, `draft_rows` their rows, `drafted` the drafted
    tokens among them and `draft_accepted` those that the sampler chose too. `draft_extra_reads` is
    how many more experts they read than their tokens would have read one by one, on average; less
    than 0 where an expert served several rows. `draft_saved_s` is the
    time that this saved, less than 0 where it lost. `not_drafting` says in one line why nothing is
    drafted now; it is empty while drafting pays.

    Where the model that drafts learns, `draft_steps` are what it learnt from so far, in steps, and
    `draft_right_before` and `draft_right_after` how often its likeliest token is that of texts
    which it did not learn from, without what it learnt and with it; -1 until that is known.
    `not_learning` says why it learns no more; empty while it does, or if that was not asked for.

    `decode_hits`, `decode_misses`, `decode_bytes_read` and `decode_wait_s` are what `decode_s` has
    of such counts. `forecast_tok_s` and `forecast_hit_rate` are what was forecast for decoding when
    the model was loaded or resized, see `edge.forecasting`; 0 if too little was known.

    The `ram_`, `forecast_` and `draft_right_` figures, `prefetching`, `not_drafting` and
    `not_learning` are not differences.
    """

    prompt_tokens: int
    tokens: int
    prefill_s: float
    decode_s: float
    hits: int = 0
    misses: int = 0
    uses_high: int = 0
    uses_low: int = 0
    uses_skipped: int = 0
    uses_leaned: int = 0
    upgraded: int = 0
    saved_bytes: int = 0
    device_hits: int = 0
    device_promoted: int = 0
    device_moved_bytes: int = 0
    bytes_read: int = 0
    read_s: float = 0.0
    wait_s: float = 0.0
    own_s: float = 0.0
    prefetched: int = 0
    prefetched_right: int = 0
    prefetchable: int = 0
    needed: int = 0
    prefetching: bool = False
    draft_rounds: int
    draft_rows: int
    drafted: int
    draft_accepted: int
    draft_extra_reads: float
    draft_saved_s: float
    not_drafting: str
    draft_steps: int
    draft_right_before: float
    draft_right_after: float
    not_learning: str
    decode_hits: int
    decode_misses: int
    decode_bytes_read: int
    decode_wait_s: float
    forecast_tok_s: float
    forecast_hit_rate: float
    ram_budget_bytes: int
    ram_planned_bytes: int
    ram_peak_bytes: int

    @property
    def decode_tok_s(self) -> float:
        """Return the tokens decoded in a second."""
        return self.tokens / self.decode_s if self.decode_s else 0.0

    @property
    def prefill_tok_s(self) -> float:
        """Return the prompt tokens computed in a second."""
        return self.prompt_tokens / self.prefill_s if self.prefill_s else 0.0

    @property
    def disk_bytes_s(self) -> float:
        """Return the bandwidth reached while reading."""
        return self.bytes_read / self.read_s if self.read_s else 0.0

    @property
    def hit_rate(self) -> float:
        """Return the share of uses that found the expert in memory; 1 if nothing is streamed."""
        uses = self.hits + self.misses
        return self.hits / uses if uses else 1.0

    @property
    def decode_hit_rate(self) -> float:
        """Return the same for decoding alone."""
        uses = self.decode_hits + self.decode_misses
        return self.decode_hits / uses if uses else 1.0

    @property
    def prefetch_precision(self) -> float:
        """Return the share of prefetched experts that were then chosen; 0 without prefetches."""
        return self.prefetched_right / self.prefetched if self.prefetched else 0.0

    @property
    def prefetch_recall(self) -> float:
        """Return the share of the `prefetchable` experts that were prefetched; 0 without any.

        A prefetch counts whether it came in time (a hit) or shortened the wait (a miss). Layers
        without a prediction do not count.
        """
        return self.prefetched_right / self.prefetchable if self.prefetchable else 0.0

    def since(self, earlier: "Stats") -> "Stats":
        """Return the difference to `earlier`."""
        kept = {
            name: value
            for name, value in vars(self).items()
            if name.startswith(("ram_", "forecast_", "draft_right_", "not_", "prefetching"))
        }
        counted = {
            name: value - getattr(earlier, name)
            for name, value in vars(self).items()
            if name not in kept
        }
        return Stats(**counted, **kept)

    def to_dict(self) -> dict[str, Any]:
        """Return all figures and rates as plain values."""
        rates = {
            "decode_tok_s": self.decode_tok_s,
            "prefill_tok_s": self.prefill_tok_s,
            "disk_bytes_s": self.disk_bytes_s,
        }
        return {**asdict(self), **rates}
