"""How much faster do low copies make streaming? Exact beside `balanced` and `fast`, with recorded
routing and its recorded weights.

    python -m haversack.tools.bench.fidelity MODEL --trace TRACE.npz [--low-from SMALLER.gguf]
        [--rate 0.5GB] [--share 0.25]

MODEL needs experts like those of the trace. Its low copies are those of `haversack prepare MODEL`,
or of --low-from. `--make 24` writes both models first, with 24 layers of Qwen3-30B-A3B's shape. The
three take turns on a drive of a steady rate. Bounds, as medians of the rounds: balanced decodes
1.35 times as many tokens a second as exact, fast 1.8 times. With `--no-bottleneck` the drive is as
fast as the page cache, and neither may be slower than exact by more than 2 %.
"""

import argparse
import statistics
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from haversack import edge
from haversack.cache.precision import fit
from haversack.devices.errors import PromptError
from haversack.devices.ggml import GraphNode
from haversack.devices.units import parse_bytes
from haversack.edge.cache_dir import default_cache_dir
from haversack.edge.fidelity import BALANCED, FAST, Fidelity
from haversack.edge.model_plan import EXACT, Plan
from haversack.edge.planner import streamed
from haversack.edge.replay import Replay, Trace
from haversack.offload.routing import set_probabilities
from haversack.quant.gguf import ModelGeometry
from haversack.tools.bench.steady_drive import SteadyDrive, steady_drive, warm
from haversack.tools.bench.stream import replayed, suited, write_model
from haversack.tools.command_line import positive, streaming_parser, tool, verdict

LOW_TYPE = "Q2_K"
BOUNDS = {BALANCED: 1.35, FAST: 1.8}
NO_BOTTLENECK = 0.98
_UNLIMITED_BYTES_S = 1e12


class WeightedReplay(Replay):
    """Also writes the recorded weights over the routers' own."""

    def __init__(self, trace: Trace, geometry: ModelGeometry) -> None:
        """Raises PromptError for a trace without weights."""
        super().__init__(trace, geometry)
        if trace.weights is None:
            raise PromptError(f"the trace {trace.name} has no weights: record it again")
        self._weights = trace.weights

    def __call__(self, layer: int, ids: npt.NDArray[np.int32], node: object = None) -> None:
        super().__call__(layer, ids)
        assert isinstance(node, GraphNode)
        set_probabilities(node, self._weights[layer][self.steps(layer, len(ids))])


def tok_s(planned: Plan, replay: Replay, drive: SteadyDrive, tokens: int) -> tuple[float, float]:
    """Return the tokens a second, and the bytes read a token."""
    options = edge.LoadOptions(open_file=drive.open, warm_start=False, speculate="off")
    with edge.load(planned, options=options) as model:
        spent = replayed(model, replay, tokens).timed
    return spent.tokens / spent.decode_s, spent.bytes_read / spent.tokens


def _fitted(asked: Fidelity, planned: Plan, trace: Trace) -> Plan:
    """Return the plan of a fidelity whose thresholds are fitted to the recorded weights, as
    `prepare` fits them to those of a text."""
    plan, shares = asked.applied(planned, default_cache_dir()), asked.shares
    assert plan.precision is not None and trace.weights is not None
    thresholds = fit(np.concatenate(trace.weights), shares.low, shares.skip)
    return replace(plan, precision=replace(plan.precision, thresholds=thresholds))


def _fast_drive(model: Path) -> SteadyDrive:
    warm(model)
    return SteadyDrive(_UNLIMITED_BYTES_S, latency_s=0)


def measured(given: argparse.Namespace) -> Iterator[bool]:
    """Print each round and each verdict; yield whether it holds."""
    recorded = Trace.load(given.trace)
    if given.make:
        write_model(given.model, recorded, given.make)
        write_model(given.low_from, recorded, given.make, LOW_TYPE)
    planned = streamed(edge.plan(given.model, ram="1TiB", ctx=512), given.share)
    planned = replace(planned, ram_bytes=planned.planned_bytes)  # the same budget for all
    trace = suited(recorded, planned.geometry)
    replay = WeightedReplay(trace, planned.geometry)
    asked = {mode: Fidelity(mode, given.low_from) for mode in BOUNDS}
    plans = {EXACT: planned, **{m: _fitted(asked[m], planned, trace) for m in BOUNDS}}
    drive = (
        _fast_drive(given.model) if given.no_bottleneck else steady_drive(given.model, given.rate)
    )
    found: dict[str, list[tuple[float, float]]] = {mode: [] for mode in plans}
    for _ in range(given.rounds):
        for mode, plan in plans.items():
            found[mode].append(tok_s(plan, replay, drive, given.tokens))
            print(f"{mode}: {found[mode][-1][0]:.2f} tok/s, {found[mode][-1][1] / 1e6:.0f} MB read")
    for mode in BOUNDS:
        ratio = statistics.median(
            one[0] / exact[0] for one, exact in zip(found[mode], found[EXACT], strict=True)
        )
        bound = NO_BOTTLENECK if given.no_bottleneck else BOUNDS[mode]
        yield verdict(f"{mode}: {ratio:.2f} >= {bound} of exact's speed", ratio >= bound)


@tool
def main(arguments: Sequence[str] | None) -> int:
    """Return 0 if both bounds hold."""
    parser = streaming_parser(__doc__, tokens=64)
    parser.add_argument("--trace", type=Path, required=True, help="recorded routing (.npz)")
    parser.add_argument("--low-from", type=Path, metavar="FILE", help="a smaller GGUF of MODEL")
    parser.add_argument("--make", type=positive, help="write MODEL and --low-from first")
    parser.add_argument("--rate", type=parse_bytes, default="0.5GB", help="of the drive a second")
    parser.add_argument("--no-bottleneck", action="store_true", help="the drive is no bottleneck")
    given = parser.parse_args(arguments)
    if given.make and not given.low_from:
        parser.error("--make writes two models: give --low-from a path as well")
    return 0 if all(list(measured(given))) else 1


if __name__ == "__main__":
    sys.exit(main())
