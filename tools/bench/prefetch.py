"""Does prefetching pay? Tokens with it beside tokens without it, on recorded routing.

    python -m haversack.tools.bench.prefetch FOLDER [--trace T.npz ...] [--share 0.25 ...]

For each trace, a random model that suits it is written to FOLDER, run with some shares of its
experts in slots on a drive held to `--rate`, and removed. The same stretch of the trace is decoded
without and with prefetching, in turn. A random model's routers cannot predict a forced choice, so
the replay predicts `--recall` of the next layer's experts (recorded models: 0.59 to 0.72). All else
is as by default: the engine prefetches the experts that are worth it, and none while it does not
pay.

Bounds: prefetching is never slower by more than 2 %. It is at least 8 % faster where the drive
reads something but idles at least 30 % of the time without it. A token's time is the median of its
times in all rounds, so that a stall of the machine does not count. Where nothing is read either
way, only predicting makes a difference: there the time in the engine's own code is compared, as a
share of a token's time.
"""

import argparse
import statistics
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from haversack import edge
from haversack.devices.units import parse_bytes
from haversack.edge.bench import Decoded, single_tokens
from haversack.edge.bench import decode as decode_timed
from haversack.edge.planner import streamed
from haversack.edge.replay import Replay, Trace
from haversack.tools.bench.steady_drive import SteadyDrive
from haversack.tools.bench.stream import write_model
from haversack.tools.command_line import positive, tool, write_rows
from haversack.tools.routing.measures import recorded_traces

MOST_LOSS, LEAST_GAIN, IDLE_SHARE = 0.02, 0.08, 0.3
_SETTLE_TOKENS = 64  # until slots are full and the first trial of prefetching is over
_WARM_TOKENS = 8  # of a stretch, not timed


@dataclass(frozen=True)
class PrefetchResult:
    """One cell: `gain` is the share of a stretch's time that prefetching saved; `idle` is the share
    of the time without prefetching in which the drive did nothing."""

    trace: str
    share: float
    off_s_per_token: float
    on_s_per_token: float
    gain: float
    idle: float
    prefetch_recall: float
    prefetching: bool

    @property
    def holds(self) -> bool:
        """Whether the bounds hold. A drive that idles all the time has nothing to prefetch."""
        return self.gain >= (LEAST_GAIN if IDLE_SHARE <= self.idle < 1 else -MOST_LOSS)


@dataclass(frozen=True)
class Settings:
    """How a cell is measured."""

    rate_bytes_s: float
    recall: float
    tokens: int
    rounds: int


def decode(model: edge.Model, replay: Replay, tokens: int, ahead: bool) -> Decoded:
    """Decode a stretch: `tokens` tokens after a few that are not timed, from the trace's start."""
    replay.rewind()
    model.watch_routing(replay, replay.predict if ahead else None)
    return decode_timed(model, single_tokens(model.vocab_size, _WARM_TOKENS - 1, tokens))


def measure(path: Path, trace: Trace, share: float, settings: Settings) -> PrefetchResult:
    """Measure one cell. Raises HaversackError."""
    planned = streamed(edge.plan(path, ram="1TiB", ctx=512), share)
    drive = SteadyDrive(settings.rate_bytes_s, from_drive=True)
    options = edge.LoadOptions(open_file=drive.open, warm_start=False)
    replay = Replay(trace, planned.geometry, settings.recall)
    found: dict[bool, list[Decoded]] = {True: [], False: []}
    with edge.load(planned, options=options) as model:
        decode(model, replay, _SETTLE_TOKENS, ahead=True)
        for number in range(settings.rounds):
            for ahead in (number % 2 == 1, number % 2 == 0):  # the first of a round in turn
                found[ahead].append(decode(model, replay, settings.tokens, ahead))
    off_s, on_s = (_usual_s(found[ahead]) for ahead in (False, True))
    own_off_s, own_on_s = (_own_s(found[ahead]) for ahead in (False, True))
    latest = found[True][-1].timed
    return PrefetchResult(
        trace=trace.name,
        share=share,
        off_s_per_token=off_s,
        on_s_per_token=on_s,
        gain=1 - on_s / off_s if _reads(found) else (own_off_s - own_on_s) / off_s,
        idle=statistics.median(_idle(stretch.timed) for stretch in found[False]),
        prefetch_recall=latest.prefetch_recall,
        prefetching=latest.prefetching,
    )


def _usual_s(stretches: Sequence[Decoded]) -> float:
    """Seconds a token: the mean of every token's median."""
    return float(np.median([stretch.tokens_s for stretch in stretches], axis=0).mean())


def _own_s(stretches: Sequence[Decoded]) -> float:
    """Seconds a token in the engine's own code."""
    return statistics.median(one.timed.own_s / one.timed.tokens for one in stretches)


def _reads(found: Mapping[bool, Sequence[Decoded]]) -> bool:
    return any(one.timed.bytes_read for stretches in found.values() for one in stretches)


def _idle(spent: edge.Stats) -> float:
    busy_s = spent.bytes_read / spent.disk_bytes_s if spent.bytes_read else 0.0
    return 1 - busy_s / spent.decode_s


def measure_all(
    folder: Path, traces: Sequence[Trace], layers: int, shares: Sequence[float], settings: Settings
) -> Iterator[PrefetchResult]:
    """Yield a result for each trace and share. Each model is removed after its last result."""
    for trace in traces:
        path = folder / f"{trace.name}.gguf"
        try:
            write_model(path, trace, min(layers, len(trace.layers)))
            for share in shares:
                yield measure(path, trace, share, settings)
        finally:
            path.unlink(missing_ok=True)


def _line(result: PrefetchResult) -> str:
    return (
        f"{result.trace}, {100 * result.share:g} %: off {1e3 * result.off_s_per_token:.1f} ms a"
        f" token (drive idle {100 * result.idle:.0f} %), on {1e3 * result.on_s_per_token:.1f}"
        f" (recall {result.prefetch_recall:.2f},"
        f" {'' if result.prefetching else 'not '}prefetching at the end):"
        f" {100 * result.gain:+.1f} %: {'holds' if result.holds else 'FAILS'}"
    )


@tool
def main(arguments: Sequence[str] | None) -> int:
    """Return 0 if the bounds hold in every cell."""
    given = _parser().parse_args(arguments)
    shares = given.share or [0.125, 0.25, 0.5]
    results = []
    settings = Settings(parse_bytes(given.rate), given.recall, given.tokens, given.rounds)
    traces = [Trace.load(path) for path in given.trace or ()] or recorded_traces()
    for result in measure_all(given.folder, traces, given.layers, shares, settings):
        results.append(result)
        print(_line(result), flush=True)
    if given.csv:
        write_rows(given.csv, [asdict(result) for result in results])
    return 0 if all(result.holds for result in results) else 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, help="for models of up to 3 GB")
    parser.add_argument("--trace", type=Path, action="append", help="all recorded ones by default")
    parser.add_argument("--share", type=float, action="append", help="of the expert bytes")
    parser.add_argument("--layers", type=positive, default=8)
    parser.add_argument("--rate", default="1GB", help="of the drive, a second")
    parser.add_argument("--recall", type=float, default=0.72, help="of predictions one layer ahead")
    parser.add_argument("--tokens", type=positive, default=48, help="of a stretch")
    parser.add_argument("--rounds", type=positive, default=8)
    parser.add_argument("--csv", type=Path, help="write the results there as well")
    return parser


if __name__ == "__main__":
    sys.exit(main())
