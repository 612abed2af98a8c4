"""What the server and its model do: for people as JSON, for Prometheus as metrics."""

from collections.abc import Iterator
from typing import Any

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from haversack.edge.model import Model
from haversack.edge.server.jobs import JobQueue

_COUNTED = {
    "prompt_tokens": "Tokens of prompts that were computed",
    "tokens": "Tokens that were decoded",
    "prefill_s": "Seconds in prompts",
    "decode_s": "Seconds in decoding",
    "hits": "Uses of experts that were in memory",
    "misses": "Uses of experts that were not",
    "device_hits": "Uses of experts that were on a device",
    "device_moved_bytes": "Bytes of experts moved to devices",
    "bytes_read": "Bytes of experts read from the drive",
    "drafted": "Drafted tokens",
    "draft_accepted": "Drafted tokens that were chosen",
    "draft_rounds": "Passes with drafted tokens",
    "draft_rows": "Rows of those passes",
}
_UNITS = {"prefill_s": "prefill_seconds", "decode_s": "decode_seconds", "bytes_read": "read_bytes"}


def queue_figures(queue: JobQueue) -> dict[str, int]:
    return {
        "jobs": queue.num_jobs,
        "most_jobs": queue.most_jobs,
        "answered": queue.num_answered,
        "refused": queue.num_refused,
        "cancelled": queue.num_cancelled,
    }


def model_figures(model: Model, with_experts: bool) -> dict[str, Any]:
    """What a model has done and holds. Raises ClosedError."""
    entries = {entry.name: entry.reserved_bytes for entry in model.budget()}
    figures = {
        "mode": model.plan.mode,
        "ctx": model.plan.shape.ctx_tokens,
        "sequences": model.plan.shape.sequences,
        "devices": [use.to_dict() for use in model.devices()],
        "budget": {"ram_bytes": model.plan.ram_bytes, "entries": entries},
        "stats": {**model.stats().to_dict(), "hit_rate": model.stats().hit_rate},
    }
    return figures | ({"experts": list(model.held_experts().values())} if with_experts else {})


class _Figures(Collector):
    """The figures of the model in memory begin anew with each load."""

    def __init__(self, queue: JobQueue) -> None:
        self._queue = queue

    def collect(self) -> Iterator[Metric]:
        queue, loaded = self._queue, self._queue.host.loaded
        for name, value in queue_figures(queue).items():
            if name in ("jobs", "most_jobs"):
                yield GaugeMetricFamily(f"haversack_{name}", "Requests run or wait", value)
            else:
                yield CounterMetricFamily(f"haversack_{name}", f"Requests {name}", value)
        yield GaugeMetricFamily("haversack_loaded", "Models in memory", int(loaded is not None))
        if loaded is None:
            return
        stats, plan = loaded.model.stats(), loaded.model.plan
        for name, help in _COUNTED.items():
            family = f"haversack_{_UNITS.get(name, name)}"
            yield CounterMetricFamily(family, help, getattr(stats, name))
        saved, extra = "haversack_draft_saved_seconds", "haversack_draft_extra_reads"
        yield GaugeMetricFamily(saved, "Seconds that drafts saved, or lost", stats.draft_saved_s)
        yield GaugeMetricFamily(extra, "Experts that drafts read more", stats.draft_extra_reads)
        yield GaugeMetricFamily("haversack_ram_budget_bytes", "The budget", plan.ram_bytes)
        yield GaugeMetricFamily("haversack_ram_peak_bytes", "The most taken", stats.ram_peak_bytes)
        budgets = GaugeMetricFamily(
            "haversack_device_budget_bytes", "The budget of a device", labels=["device"]
        )
        for device in plan.devices:
            budgets.add_metric([device.name], device.budget_bytes)
        yield budgets


def metrics_of(queue: JobQueue) -> bytes:
    """The metrics in Prometheus's text format."""
    registry = CollectorRegistry()
    registry.register(_Figures(queue))
    return generate_latest(registry)
