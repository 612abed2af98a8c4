"""How near to its bounds does streaming come? Decoding with recorded routing.

    python -m haversack.tools.bench.stream MODEL --trace TRACE.npz [--share 0.25 --rate 1GB ...]

For each share of the expert bytes in slots and each steady rate of the drive, this measures the
seconds a token, and divides them by the larger of two bounds: computing a token with everything
resident, and reading what it misses. MODEL needs experts like those of the trace: `--make 24`
writes a model with 24 layers of Qwen3-30B-A3B's shape. If MODEL has more layers than were recorded,
the recorded layers are replayed again for the others, from other moments of the recording.

Each cell is timed without prefetching, and with predictions of `--recall`. A random model's routers
cannot predict a forced choice, so the replay makes the predictions of a predictor that knows that
share of the next layer's experts (and less of later layers). Recorded models: 0.59 to 0.72, by the
next layer's router from this layer's input.

Bytes come from MODEL's own drive, held back to the steady rate, if it is faster by a third; else
from the page cache, whose copies take twice the processor's time. Then memory for twice the model
is needed, and for a share of it besides.

With --limit, as root on Linux, each share is also measured beside plain llama.cpp, which maps the
model: on the model's own drive, in a memory control group, with the routing forced upon both
engines. `--csv FILE.csv` writes these results to `FILE_limited.csv`.
"""

import argparse
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path

import numpy as np
import numpy.typing as npt

from haversack import edge
from haversack.cache.policies import ExpectedUse
from haversack.devices.system.cgroup import why_not
from haversack.devices.units import parse_bytes
from haversack.edge.bench import Decoded, decode, single_tokens
from haversack.edge.model_plan import Plan
from haversack.edge.planner import streamed
from haversack.edge.replay import Replay, Trace
from haversack.offload.expert_engine import Predict
from haversack.offload.pool import spare_slots
from haversack.quant.gguf import ModelGeometry
from haversack.tools.bench.limited import LimitedResult, measure_limited
from haversack.tools.bench.steady_drive import SteadyDrive, drive_bytes_s, is_faster, warm
from haversack.tools.command_line import (
    USAGE_EXIT_CODE,
    positive,
    tool,
    traced_parser,
    write_rows,
)
from haversack.tools.models.synth_large import LargeOptions, write_large
from haversack.tools.routing.simulate import missed

# Not timed, because slots fill and their memory is touched for the first time.
WARM_TOKENS = 64

SHARES = [0.125, 0.25, 0.5, 1.0]


@dataclass(frozen=True)
class Cell:
    """What is measured: a share of the experts in slots, and a drive of a steady rate. Its bytes
    come from the model's own drive or from the page cache."""

    share: float
    rate_bytes_s: float
    from_drive: bool


@dataclass(frozen=True)
class StreamResult:
    """One measurement of a recorded routing. `recall` is that of the predictions, 0 for none.
    `bound_s` is the larger of computing a token (`compute_s`) and reading what it misses without
    prefetching (`disk_s`), both on average. `floor_s` is the average of every token's own bound.
    Some tokens miss five times as much as others; to be faster than `floor_s`, the experts of one
    token must be read while the token before it is computed."""

    trace: str
    share: float
    rate_bytes_s: float
    from_drive: bool
    recall: float
    s_per_token: float
    compute_s: float
    disk_s: float
    bound_s: float
    floor_s: float
    ratio: float
    wait_s: float
    own_s: float
    hit_rate: float
    bytes_per_token: float
    prefetching: bool

    def __str__(self) -> str:
        return (
            f"{100 * self.share:g} % at {self.rate_bytes_s / 1e9:g} GB/s"
            f" ({'drive' if self.from_drive else 'page cache'}), recall {self.recall:g}:"
            f" {1e3 * self.s_per_token:.1f} ms a token, compute {1e3 * self.compute_s:.1f},"
            f" disk {1e3 * self.disk_s:.1f}: {self.ratio:.2f} of the bound"
            f" (every token's own: {self.floor_s / self.bound_s:.2f})"
            f" (waited {1e3 * self.wait_s:.1f} ms, own code {1e3 * self.own_s:.1f},"
            f" read {self.bytes_per_token / 1e6:.0f} MB, hits {100 * self.hit_rate:.1f} %,"
            f" {'' if self.prefetching else 'not '}prefetching at the end)"
        )


def write_model(path: Path, trace: Trace, layers: int, block_type: str = "Q4_K") -> None:
    """Write a large random model that `trace` can be replayed on."""
    options = LargeOptions(
        num_experts=trace.num_experts, num_experts_per_tok=trace.num_experts_per_tok
    )
    write_large(path, layers=layers, block_type=block_type, options=options)


def suited(trace: Trace, geometry: ModelGeometry) -> Trace:
    """Return `trace` with at least as many layers as the model of that geometry."""
    num_layers = 1 + max((layer.layer for layer in geometry.layers), default=0)
    return trace if num_layers <= len(trace.layers) else trace.deepened(num_layers)


def replayed(
    model: edge.Model, replay: Replay, tokens: int, predict: Predict | None = None
) -> Decoded:
    """Decode `tokens` tokens after a warm-up, with the trace's routing from its start; return what
    they took."""
    replay.rewind()
    model.watch_routing(replay, predict)
    return decode(model, single_tokens(model.vocab_size, WARM_TOKENS - 1, tokens))


def missed_bytes(planned: Plan, trace: Trace, tokens: int) -> npt.NDArray[np.float64]:
    """Return the bytes that each token after the warm-up misses in the plan's slots, without
    prefetching."""
    layers = len(planned.geometry.layers)
    steps = np.arange(WARM_TOKENS + tokens) % trace.num_steps
    cut = Trace(trace.name, trace.num_experts, [choice[steps] for choice in trace.layers[:layers]])
    (pool,) = planned.pools
    policy = ExpectedUse(layers, trace.num_experts)
    misses = missed(cut, pool.num_slots, policy, spare_slots(pool.num_slots))
    expert_bytes = planned.geometry.layers[0].expert_bytes
    return (misses[WARM_TOKENS:] * expert_bytes).astype(np.float64)


class StreamBench:
    """Measures cells. Computing alone is timed before and after each, because the speed of machines
    changes within minutes."""

    def __init__(self, model: Path, trace: Trace, tokens: int) -> None:
        self._planned = edge.plan(model, ram="1TiB", ctx=512)
        self._trace, self._tokens = suited(trace, self._planned.geometry), tokens

    def measure(self, cells: Sequence[Cell], recalls: Sequence[float]) -> Iterator[StreamResult]:
        """Yield a result for each cell and recall."""
        replay = Replay(self._trace, self._planned.geometry)
        cold = edge.LoadOptions(warm_start=False)
        with edge.load(streamed(self._planned), options=cold) as resident:
            replayed(resident, replay, self._tokens)
            for cell, recall in product(cells, recalls):
                before = replayed(resident, replay, self._tokens)
                spent = self._streamed(cell, recall)
                after = replayed(resident, replay, self._tokens)
                compute_s = (before.tokens_s.mean() + after.tokens_s.mean()) / 2
                yield self._result(cell, recall, float(compute_s), spent.timed)

    def measure_limited(self, shares: Sequence[float], tokens: int) -> Iterator[LimitedResult]:
        """Yield a result for each share, beside plain llama.cpp (see `tools/bench/limited.py`)."""
        return measure_limited(self._planned, self._trace, shares, tokens)

    def _streamed(self, cell: Cell, recall: float) -> Decoded:
        if not cell.from_drive:
            warm(self._planned.path)
        drive = SteadyDrive(cell.rate_bytes_s, from_drive=cell.from_drive)
        options = edge.LoadOptions(open_file=drive.open, warm_start=False)
        replay = Replay(self._trace, self._planned.geometry, recall)
        with edge.load(streamed(self._planned, cell.share), options=options) as model:
            return replayed(model, replay, self._tokens, replay.predict if recall else None)

    def _result(
        self, cell: Cell, recall: float, compute_s: float, spent: edge.Stats
    ) -> StreamResult:
        s_per_token = spent.decode_s / spent.tokens
        plan = streamed(self._planned, cell.share)
        disk_s = missed_bytes(plan, self._trace, self._tokens) / cell.rate_bytes_s
        bound_s = max(compute_s, float(disk_s.mean()))
        return StreamResult(
            trace=self._trace.name,
            share=cell.share,
            rate_bytes_s=cell.rate_bytes_s,
            from_drive=cell.from_drive,
            recall=recall,
            s_per_token=s_per_token,
            compute_s=compute_s,
            disk_s=float(disk_s.mean()),
            bound_s=bound_s,
            floor_s=float(np.maximum(disk_s, compute_s).mean()),
            ratio=s_per_token / bound_s,
            wait_s=spent.wait_s / spent.tokens,
            own_s=spent.own_s / spent.tokens,
            hit_rate=spent.hit_rate,
            bytes_per_token=spent.bytes_read / spent.tokens,
            prefetching=spent.prefetching,
        )


@tool
def main(arguments: Sequence[str] | None) -> int:
    """Measure what the command line asks for; the exit status."""
    given = _parser().parse_args(arguments)
    if given.limit and why_not():
        print(why_not(), file=sys.stderr)
        return USAGE_EXIT_CODE
    trace = Trace.load(given.trace)
    if given.make:
        write_model(given.model, trace, given.make)
    bench, shares = StreamBench(given.model, trace, given.tokens), given.share or SHARES
    cells = _cells(given.model, shares, given.rate or ["1GB", "3GB"])
    recalls = [0.0, given.recall] if given.recall else [0.0]
    _keep(bench.measure(cells, recalls), given.csv)
    if given.limit:
        beside = given.csv and given.csv.with_stem(f"{given.csv.stem}_limited")
        _keep(bench.measure_limited(shares, given.plain_tokens), beside)
    return 0


def _keep(results: Iterable[StreamResult | LimitedResult], path: Path | None) -> None:
    """Print each result as it comes, then write all to `path`."""
    rows = []
    for result in results:
        print(result, flush=True)
        rows.append(asdict(result))
    if path:
        write_rows(path, rows)


def _cells(model: Path, shares: Sequence[float], rates: Sequence[str]) -> list[Cell]:
    drive = drive_bytes_s(model)
    steady = [float(parse_bytes(rate)) for rate in rates]
    return [Cell(share, rate, is_faster(drive, rate)) for share, rate in product(shares, steady)]


def _parser() -> argparse.ArgumentParser:
    parser = traced_parser(__doc__)
    parser.add_argument("--share", type=float, action="append", help="of the expert bytes")
    parser.add_argument("--rate", action="append", help="of the steady drive: 1GB, say")
    parser.add_argument("--recall", type=float, default=0.72, help="of predictions; 0: none")
    parser.add_argument("--tokens", type=positive, default=64)
    parser.add_argument("--make", type=positive, help="write MODEL first, with so many layers")
    parser.add_argument("--limit", action="store_true", help="also beside plain llama.cpp")
    parser.add_argument("--plain-tokens", type=positive, default=8, help="timed with --limit")
    return parser


if __name__ == "__main__":
    sys.exit(main())
