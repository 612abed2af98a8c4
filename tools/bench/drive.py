"""How much of a real drive's speed does decoding get, and what do the reads cost?

    python -m haversack.tools.bench.drive MODEL [--share 0.25] [--tokens 64]

The model chooses its own routing. Bounds, each the median of some rounds, because drives swing:
- While at least one read is under way, decoding gets at least 0.85 of the rate that the drive gives
  while nothing computes (the mean of before and after).
- A GB read costs at most 0.2 CPU-seconds beyond those that the same tokens take with all experts in
  slots (the mean of before and after).
- A token makes at most 50 minor page faults, once slots are filled.

The rate that the drive gives while a model computes is printed too: a virtual machine's drive is
software and needs the cores that compute. Memory for the model and the share is needed. Not for
Windows.
"""

import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from haversack import edge
from haversack.devices.errors import HaversackError
from haversack.edge import bench
from haversack.edge.model_plan import Plan
from haversack.edge.planner import streamed
from haversack.tools.bench.steady_drive import drive_bytes_s
from haversack.tools.command_line import streaming_parser, tool, verdict

if sys.platform != "win32":
    import resource

LEAST_DRIVE_SHARE, MOST_CPU_S_PER_GB, MOST_FAULTS = 0.85, 0.2, 50.0


@dataclass(frozen=True)
class Decoded:
    """What some tokens took, by the counters of the engine and of the process."""

    stats: edge.Stats
    cpu_s: float
    minor_faults: int


@dataclass(frozen=True)
class DriveResult:
    """The rates that the drive could give and gave to decoding, and what the reads cost."""

    drive_bytes_s: float
    beside_bytes_s: float  # the drive's rate while the same model computes
    reached_bytes_s: float
    cpu_s_per_gb: float
    minor_faults_per_token: float
    s_per_token: float

    @property
    def drive_share(self) -> float:
        """The rate reached, over the drive's rate while nothing computes."""
        return self.reached_bytes_s / self.drive_bytes_s

    @property
    def beside_share(self) -> float:
        """The rate reached, over the drive's rate while a model computes."""
        return self.reached_bytes_s / self.beside_bytes_s


def decode(model: edge.Model, tokens: int) -> Decoded:
    """Decode `tokens` tokens and one before them, the same at each call; return what they took."""
    work = bench.single_tokens(model.vocab_size, 0, tokens)
    stats, cpu_s, faults = model.stats(), time.process_time(), _minor_faults()
    bench.decode(model, work)
    spent_s, spent_faults = time.process_time() - cpu_s, _minor_faults() - faults
    return Decoded(model.stats().since(stats), spent_s, spent_faults)


def _minor_faults() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt


def drive_beside_bytes_s(path: Path, model: edge.Model) -> float:
    """Measure the drive under `path`, in bytes a second, while `model` computes."""
    with ThreadPoolExecutor(1) as pool:
        found = pool.submit(drive_bytes_s, path)
        while not found.done():
            decode(model, 1)
        return found.result()


def measure(planned: Plan, share: float, tokens: int, rounds: int) -> list[DriveResult]:
    """Decode with `share` of the experts in slots beside all of them, in `rounds` rounds. Raises
    HaversackError, also where the share leaves nothing to read."""
    cold = edge.LoadOptions(warm_start=False)
    with (
        edge.load(streamed(planned), options=cold) as resident,
        edge.load(streamed(planned, share), options=cold) as cramped,
    ):
        for model in (resident, cramped):
            decode(model, tokens)  # slots fill, and their memory is touched
        return [_round(resident, cramped, tokens) for _ in range(rounds)]


def _round(resident: edge.Model, cramped: edge.Model, tokens: int) -> DriveResult:
    path = cramped.plan.path
    before = decode(resident, tokens)
    drive_before_bytes_s = drive_bytes_s(path)
    spent = decode(cramped, tokens)
    drive_after_bytes_s = drive_bytes_s(path)
    after = decode(resident, tokens)
    if not spent.stats.misses:
        raise HaversackError("the share of the experts holds all that are used: lower --share")
    compute_cpu_s = (before.cpu_s + after.cpu_s) / 2
    return DriveResult(
        drive_bytes_s=(drive_before_bytes_s + drive_after_bytes_s) / 2,
        beside_bytes_s=drive_beside_bytes_s(path, resident),
        reached_bytes_s=spent.stats.disk_bytes_s,
        cpu_s_per_gb=(spent.cpu_s - compute_cpu_s) / (spent.stats.bytes_read / 1e9),
        minor_faults_per_token=spent.minor_faults / (1 + tokens),
        s_per_token=spent.stats.decode_s / tokens,
    )


def report(results: Sequence[DriveResult]) -> bool:
    """Print the rounds, their medians, and whether these hold; return whether all do."""

    def middle(of: Callable[[DriveResult], float]) -> float:
        return median(map(of, results))

    for result in results:
        print(
            f"{result.reached_bytes_s / 1e9:.2f} GB/s while reads were out; the drive gives"
            f" {result.drive_bytes_s / 1e9:.2f}, beside computing"
            f" {result.beside_bytes_s / 1e9:.2f} ({result.beside_share:.2f} of that);"
            f" {1e3 * result.s_per_token:.0f} ms a token"
        )
    share, cpu_s = middle(lambda r: r.drive_share), middle(lambda r: r.cpu_s_per_gb)
    faults = middle(lambda r: r.minor_faults_per_token)
    return all(
        [
            verdict(
                f"share of the drive: {share:.2f} >= {LEAST_DRIVE_SHARE}",
                share >= LEAST_DRIVE_SHARE,
            ),
            verdict(
                f"CPU-seconds a GB read, beyond computing: {cpu_s:.2f} <= {MOST_CPU_S_PER_GB}",
                cpu_s <= MOST_CPU_S_PER_GB,
            ),
            verdict(
                f"minor page faults a token: {faults:.0f} <= {MOST_FAULTS:g}",
                faults <= MOST_FAULTS,
            ),
        ]
    )


@tool
def main(arguments: Sequence[str] | None) -> int:
    """Return 0 if every bound holds."""
    given = streaming_parser(__doc__, tokens=64).parse_args(arguments)
    planned = edge.plan(given.model, ram="1TiB", ctx=512)
    return 0 if report(measure(planned, given.share, given.tokens, given.rounds)) else 1


if __name__ == "__main__":
    sys.exit(main())
