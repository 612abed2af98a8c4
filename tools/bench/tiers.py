"""How near to its bound does a token come where a GPU holds part of the experts? And is it ever
slower than without one? On a simulated GPU, with recorded routing.

    python -m haversack.tools.bench.tiers MODEL --trace TRACE.npz [--make 24]

MODEL needs experts like those of the trace: `--make 24` writes a model with 24 layers of
Qwen3-30B-A3B's shape. Its experts take memory up to four times, because what is compared is open at
once. The GPU's memory is as fast as `--memory` says. It computes nothing: a clock
says when its results, zeros, are there. So a GPU faster than this computer can be simulated, and
the routing has to be forced, which the trace does.

The bound of a token is the largest of four times: the host's (all but the experts, and the experts
that are not on the GPU), the GPU's (all but the experts, and those that are on it), the link's and
the drive's. From a token's last choice to the next token's first nobody knows what to read: that
time is part of the drive's. The eviction rule says how many are on the GPU, or on neither: it is
replayed on the trace with as many slots; what the GPU computed counts if it was more. The link's
time is that of the bytes that were copied. With `--placement fixed` no expert moves, and what was
measured counts.

Where experts are read from a drive, the replay predicts `--recall` of a layer's experts, as in
`tools/bench/stream.py`, because the routers of a random model cannot predict a forced choice. A
clock says when their bytes are there, as with the GPU's results: copying them would take this
computer's processor, which a drive leaves alone.

Exit code 1 says that a case does not hold: of 25 % of the experts on the GPU behind 12 GB/s a token
that takes more than 1.25 of its bound, or of 50 % behind a link ten times slower one that takes 2 %
longer than the CPU alone. All times are those of the median token.
"""

import argparse
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from haversack import edge
from haversack.cache.policies import ExpectedUse
from haversack.devices.units import parse_bytes
from haversack.edge.model_plan import Plan
from haversack.edge.placement import FIXED, FREE, PLACEMENTS
from haversack.edge.planner import streamed
from haversack.edge.replay import Replay, Trace
from haversack.offload.pool import spare_slots
from haversack.offload.simulated import Link, Processor, SimulatedDevice
from haversack.offload.tier import workspace_bytes
from haversack.tools.bench.steady_drive import SteadyDrive, warm
from haversack.tools.bench.stream import WARM_TOKENS, replayed, suited, write_model
from haversack.tools.command_line import positive, tool, traced_parser, verdict, write_rows
from haversack.tools.routing.simulate import missed

_DRIVE_BYTES_S = 3e9
_TURNS = 3
_NO_TIME = 1e15  # bytes a second of what takes no time


@dataclass(frozen=True)
class Case:
    """Shares of the experts on the GPU and on the host, and the link between them. A token may take
    `most_of_bound` times its bound and `most_of_alone` times what the CPU alone takes."""

    vram_share: float
    ram_share: float
    link: Link
    most_of_bound: float | None = None
    most_of_alone: float | None = None


CASES = (
    Case(0.25, 1.0, Link(12e9), most_of_bound=1.25),
    Case(0.25, 0.25, Link(12e9), most_of_bound=1.25),
    Case(0.5, 1.0, Link(1.2e9), most_of_alone=1.02),
)
_ALL_ON_GPU = Case(1.0, 0.0, Link(_NO_TIME, latency_s=0))
_AT_ONCE = Processor(_NO_TIME, launch_s=0, computes=False)


@dataclass(frozen=True)
class TierResult:
    """What a case measured, in seconds a token. `alone_s` is the CPU's alone with all experts in
    memory, `trunk_s` that of all but the experts; the bound is the largest of the last four.
    `on_gpu` is the share of uses there, by the rule, or as measured if that is more. What was read
    was waited for so long. `late_s` is how much longer waits took than on the GPU that is
    simulated."""

    trace: str
    vram_share: float
    ram_share: float
    link_bytes_s: float
    s_per_token: float
    alone_s: float
    trunk_s: float
    host_s: float
    gpu_s: float
    link_s: float
    drive_s: float
    on_gpu: float
    measured_on_gpu: float
    moved_bytes: float
    read_bytes: float
    waited_s: float
    late_s: float

    @property
    def bound_s(self) -> float:
        return max(self.host_s, self.gpu_s, self.link_s, self.drive_s)

    def holds(self, case: Case) -> bool:
        """Return whether a token takes no longer than the case allows."""
        of_bound = case.most_of_bound is None or self.ratio <= case.most_of_bound
        of_alone = case.most_of_alone is None or self.beside_alone <= case.most_of_alone
        return of_bound and of_alone

    @property
    def ratio(self) -> float:
        return self.s_per_token / self.bound_s

    @property
    def beside_alone(self) -> float:
        return self.s_per_token / self.alone_s

    def __str__(self) -> str:
        parts = ("host", "gpu", "link", "drive")
        times = ", ".join(f"{part} {1e3 * getattr(self, part + '_s'):.1f}" for part in parts)
        return (
            f"{self.trace}: {100 * self.vram_share:g} % on the GPU behind"
            f" {self.link_bytes_s / 1e9:g} GB/s, {100 * self.ram_share:g} % on the host:"
            f" {1e3 * self.s_per_token:.1f} ms a token, {self.ratio:.2f} of the bound ({times});"
            f" {self.beside_alone:.3f} of the CPU alone ({1e3 * self.alone_s:.1f}); of uses"
            f" {100 * self.measured_on_gpu:.0f} % on the GPU (bound: {100 * self.on_gpu:.0f} %),"
            f" copied there {self.moved_bytes / 1e6:.1f} MB, read {self.read_bytes / 1e6:.1f} MB,"
            f" waited {1e3 * self.waited_s:.1f} ms, simulation late by {1e3 * self.late_s:.2f} ms"
        )


@dataclass(frozen=True)
class Run:
    """Seconds of the median token; what the drive gave for a token and how long that was waited
    for, the time from a token's last choice to the next one's first, the share of uses that the GPU
    computed, what was copied there for a token, and how much longer waits took than on the GPU that
    is simulated."""

    s_per_token: float
    read_bytes: float
    waited_s: float
    blind_s: float
    on_gpu: float = 0.0
    moved_bytes: float = 0.0
    late_s: float = 0.0


@dataclass(frozen=True)
class Setting:
    """What all cases share: tokens, the GPU's processor, placement, and recall of predictions."""

    tokens: int
    processor: Processor
    placement: str
    recall: float


class TimedReplay(Replay):
    """A replay that knows how long each token's first choice came after the last one's last."""

    _last_layer, _last_s = -1, 0.0

    def rewind(self) -> None:
        super().rewind()
        self._gaps_s = list[float]()

    def __call__(self, layer: int, ids: npt.NDArray[np.int32], node: object = None) -> None:
        if layer < self._last_layer:
            self._gaps_s.append(time.perf_counter() - self._last_s)
        super().__call__(layer, ids, node)
        self._last_layer, self._last_s = layer, time.perf_counter()

    def blind_s(self) -> float:
        """Return the seconds between, of the median token since the start."""
        return float(np.median(self._gaps_s))


@dataclass(frozen=True)
class Simulated:
    """What a model has that this computer has not, and the recall of predictions."""

    drive: SteadyDrive | None = None
    device: SimulatedDevice | None = None
    recall: float = 0.0


@dataclass
class Runner:
    """A model whose slots are full: it has decoded the trace once."""

    model: edge.Model
    replay: TimedReplay
    tokens: int
    simulated: Simulated

    @classmethod
    @contextmanager
    def opened(
        cls, planned: Plan, trace: Trace, tokens: int, simulated: Simulated = Simulated()
    ) -> Iterator["Runner"]:
        """Open a model and let it decode the trace; close it at the end."""
        options, drive = edge.LoadOptions(warm_start=False), simulated.drive
        if drive is not None:
            options = replace(options, open_file=drive.open)
        replay = TimedReplay(trace, planned.geometry, simulated.recall)
        with edge.load(planned, options=options) as model:
            runner = cls(model, replay, tokens, simulated)
            runner.run()
            if drive is not None:
                drive.stop_copying()
            yield runner

    def run(self) -> Run:
        """Decode the trace; return what it took."""
        device, replay = self.simulated.device, self.replay
        before = None if device is None else device.counts()
        predict = replay.predict if self.simulated.recall else None
        decoded = replayed(self.model, replay, self.tokens, predict)
        spent = decoded.timed
        run = Run(
            s_per_token=float(np.median(decoded.tokens_s)),
            read_bytes=spent.bytes_read / spent.tokens,
            waited_s=spent.wait_s / spent.tokens,
            blind_s=replay.blind_s(),
        )
        if device is None or before is None:
            return run
        after, num_tokens = device.counts(), WARM_TOKENS + self.tokens
        return replace(
            run,
            on_gpu=spent.device_hits / max(1, spent.hits + spent.misses),
            moved_bytes=(after.to_device_bytes - before.to_device_bytes) / num_tokens,
            late_s=(after.late_s - before.late_s) / num_tokens,
        )


class TierBench:
    """Measures cases on one model."""

    def __init__(self, model: Path, trace: Trace, setting: Setting) -> None:
        self._planned = edge.plan(model, ram="1TiB", ctx=512)
        self._trace, self._setting = suited(trace, self._planned.geometry), setting

    def measure(self, cases: Sequence[Case]) -> Iterator[tuple[Case, TierResult]]:
        """Yield each case with its result. The speed of machines changes within seconds, so the
        CPU alone, all but the experts, and the case are timed in turns, and of each the best turn
        counts."""
        with Runner.opened(streamed(self._planned), self._trace, self._setting.tokens) as alone:
            for case in cases:
                with (
                    self._beside(_ALL_ON_GPU, _AT_ONCE) as trunk,
                    self._beside(case, self._setting.processor) as beside,
                ):
                    turns = [[each.run() for each in (alone, trunk, beside)] for _ in range(_TURNS)]
                best = [
                    min(runs, key=lambda run: run.s_per_token) for runs in zip(*turns, strict=True)
                ]
                yield case, self._result(case, *best)

    @contextmanager
    def _beside(self, case: Case, processor: Processor) -> Iterator["Runner"]:
        geometry, drive, recall = self._planned.geometry, None, 0.0
        scratch_bytes = workspace_bytes(geometry.layers, self._planned.shape.batch_tokens)
        vram_bytes = scratch_bytes + int(case.vram_share * geometry.expert_bytes)
        with SimulatedDevice(2 * vram_bytes, case.link, processor) as device:
            planned = edge.plan(
                self._planned.path,
                ram="1TiB",
                ctx=512,
                vram={device.name: vram_bytes},
                placement=self._setting.placement,
            )
            if case.vram_share + case.ram_share < 1:
                warm(planned.path)
                drive, recall = SteadyDrive(_DRIVE_BYTES_S), self._setting.recall
            planned = streamed(planned, case.ram_share)
            tokens, simulated = self._setting.tokens, Simulated(drive, device, recall)
            with Runner.opened(planned, self._trace, tokens, simulated) as runner:
                yield runner

    def _missed(self, share: float) -> float:
        """Return the share of uses whose expert is not in slots for `share` of all experts, once
        the trace was seen, by the rule."""
        layers = len(self._planned.geometry.layers)
        num_slots = int(share * layers * self._trace.num_experts)
        if share >= 1:
            return 0.0
        tokens = self._setting.tokens
        steps = np.arange(WARM_TOKENS + tokens) % self._trace.num_steps
        twice = [choice[np.tile(steps, 2)] for choice in self._trace.layers[:layers]]
        cut = Trace(self._trace.name, self._trace.num_experts, twice)
        policy = ExpectedUse(layers, self._trace.num_experts)
        misses = missed(cut, num_slots, policy, spare_slots(num_slots))[-tokens:]
        return float(misses.mean()) / (layers * self._trace.num_experts_per_tok)

    def _result(self, case: Case, alone: Run, trunk: Run, found: Run) -> TierResult:
        geometry = self._planned.geometry
        alone_s, trunk_s = alone.s_per_token, trunk.s_per_token
        expert_bytes = geometry.expert_bytes / len(geometry.layers) / self._trace.num_experts
        used_bytes = expert_bytes * len(geometry.layers) * self._trace.num_experts_per_tok
        on_gpu, read_bytes = found.on_gpu, found.read_bytes
        if self._setting.placement != FIXED:
            on_gpu = max(on_gpu, 1 - self._missed(case.vram_share))
            read_bytes = self._missed(case.vram_share + case.ram_share) * used_bytes
        experts_s = max(0.0, alone_s - trunk_s)
        memory_bytes_s = self._setting.processor.memory_bytes_s or _NO_TIME
        return TierResult(
            trace=self._trace.name,
            vram_share=case.vram_share,
            ram_share=case.ram_share,
            link_bytes_s=case.link.bytes_s,
            s_per_token=found.s_per_token,
            alone_s=alone_s,
            trunk_s=trunk_s,
            host_s=trunk_s + (1 - on_gpu) * experts_s,
            gpu_s=trunk_s + on_gpu * used_bytes / memory_bytes_s,
            link_s=found.moved_bytes / case.link.bytes_s,
            drive_s=trunk.blind_s + read_bytes / _DRIVE_BYTES_S if read_bytes else 0.0,
            on_gpu=on_gpu,
            measured_on_gpu=found.on_gpu,
            moved_bytes=found.moved_bytes,
            read_bytes=found.read_bytes,
            waited_s=found.waited_s,
            late_s=found.late_s,
        )


@tool
def main(arguments: Sequence[str] | None) -> int:
    """Measure the cases on the model of the command line; the exit status."""
    given = _parser().parse_args(arguments)
    trace = Trace.load(given.trace)
    if given.make:
        write_model(given.model, trace, given.make)
    processor = Processor(float(parse_bytes(given.memory)), computes=False)
    setting = Setting(given.tokens, processor, given.placement, given.recall)
    bench = TierBench(given.model, trace, setting)
    rows, held = [], list[bool]()
    for case, result in bench.measure(CASES):
        held.append(verdict(str(result), result.holds(case)))
        rows.append(asdict(result) | {"bound_s": result.bound_s, "ratio": result.ratio})
    if given.csv:
        write_rows(given.csv, rows)
    return 0 if all(held) else 1


def _parser() -> argparse.ArgumentParser:
    parser = traced_parser(__doc__)
    parser.add_argument("--memory", default="300GB", help="bytes a second of the GPU's memory")
    parser.add_argument("--placement", default=FREE, choices=PLACEMENTS)
    parser.add_argument("--recall", type=float, default=0.72, help="of predictions; 0: none")
    parser.add_argument("--tokens", type=positive, default=64)
    parser.add_argument("--make", type=positive, help="write MODEL first, with so many layers")
    return parser


if __name__ == "__main__":
    sys.exit(main())
