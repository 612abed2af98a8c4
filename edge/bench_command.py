"""What `haversack bench` does with a plan."""

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from haversack.devices.units import format_bytes
from haversack.edge.bench import Work, device_bytes_s, measure, random_tokens, replay_of
from haversack.edge.comparison import measure_plain
from haversack.edge.console import figure_text, write_json, write_table
from haversack.edge.measure_options import BenchOptions
from haversack.edge.model import Model
from haversack.edge.model_plan import Plan
from haversack.offload.simulated import SimulatedDevice


def run_bench(
    planned: Plan,
    asked: BenchOptions,
    cache_dir: Path,
    load_planned: Callable[[], Model],
    gpu: SimulatedDevice | None,
    *,
    as_json: bool,
) -> None:
    """Measure the model of a plan, beside `gpu` if one is simulated, and write what was found.
    Raises HaversackError."""
    if asked.sweep is not None:
        from haversack.edge.sweep import show_sweep

        return show_sweep(planned, asked, cache_dir, as_json)
    figures = {"model": str(planned.path), **_measured(planned, asked, cache_dir, load_planned)}
    if gpu is not None:
        did = {f"gpu_{name}": value for name, value in asdict(gpu.counts()).items()}
        figures |= {"gpu": gpu.description, **did}
    if as_json:
        write_json(figures)
        return
    rows = [(name, figure_text(name, value)) for name, value in figures.items() if name != "model"]
    write_table(f"{planned.path.name} in {format_bytes(planned.ram_bytes)}", ("", ">"), rows)


def _measured(
    planned: Plan, asked: BenchOptions, cache_dir: Path, load_planned: Callable[[], Model]
) -> dict[str, Any]:
    replay_of(asked.trace, planned)  # raises for a wrong trace before anything is loaded
    drive_bytes_s = device_bytes_s(planned, cache_dir)
    with load_planned() as loaded:
        tokens = random_tokens(loaded.vocab_size, asked.num_tokens, asked.seed)
        work = Work(tokens, asked.prompt_tokens, asked.warm_tokens, asked.trace)
        result = measure(loaded, work, drive_bytes_s)
    if asked.compare is None:
        return result.to_dict()
    return result.to_dict() | measure_plain(planned, work).beside(result)
