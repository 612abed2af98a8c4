"""How much of a real drive does decoding get, and what does it cost? A model with its own routing.

    python -m haversack.tools.bench.drive MODEL [--share 0.25] [--tokens 64]
    sudo python -m haversack.tools.bench.drive MODEL --limit   # beside llama.cpp in the same memory

Bounds: while reads are out, at least 0.85 of what the drive gives when measured just before and
after (the mean), with nobody computing; at most 0.2 CPU-seconds for each GB read, beyond those of
the same tokens with all experts in slots (before and after, the mean); at most 50 minor page faults
a token, once warm. Each is the median of some rounds, because drives swing. What the drive gives
beside computing is told, too: drives that are software, as in virtual machines, need the cores that
compute.
With --limit, in a memory control group of what the share needs and 64 MiB, plain llama.cpp, which
maps the model, takes at least 20 times as long a token. Memory for the model and the share is
needed. Not for Windows.
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from haversack import edge
from haversack.devices.errors import HaversackError
from haversack.devices.storage import measure_disk
from haversack.devices.system.cgroup import why_not
from haversack.edge.planner import Plan, streamed
from haversack.tools.bench.budget import plain_tok_s, streamed_tok_s
from haversack.tools.counts import positive

if sys.platform != "win32":
    import resource

LEAST_DRIVE_SHARE, MOST_CPU_S_PER_GB, MOST_FAULTS, LEAST_SPEEDUP = 0.85, 0.2, 50.0, 20.0


@dataclass(frozen=True)
class Decoded:
    """What some tokens took: the engine's counts, and the process's."""

    stats: edge.Stats
    cpu_s: float
    minor_faults: int


@dataclass(frozen=True)
class DriveResult:
    """Tokens streamed from the drive: what it could give and gave, and what that cost."""

    drive_bytes_s: float
    beside_bytes_s: float  # what the drive gives while the same model computes
    reached_bytes_s: float
    cpu_s_per_gb: float
    minor_faults_per_token: float
    s_per_token: float

    @property
    def drive_share(self) -> float:
        """What was reached of what the drive could give."""
        return self.reached_bytes_s / self.drive_bytes_s

    @property
    def beside_share(self) -> float:
        """What was reached of what it gives beside computing."""
        return self.reached_bytes_s / self.beside_bytes_s


def decode(model: edge.Model, tokens: int) -> Decoded:
    """What `tokens` tokens took, the same ones at each call, after one that is not counted."""
    rows = model.iter_logits([7 * i % 500 for i in range(1 + tokens)], 1)
    next(rows)
    stats, cpu_s, faults = model.stats(), time.process_time(), _minor_faults()
    for _ in rows:
        pass
    spent_s, spent_faults = time.process_time() - cpu_s, _minor_faults() - faults
    return Decoded(model.stats().since(stats), spent_s, spent_faults)


def _minor_faults() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt


def drive_bytes_s(path: Path) -> float:
    """What the drive under `path` gives now. Raises StorageError."""
    with tempfile.TemporaryDirectory() as folder:
        return measure_disk(path, cache_dir=Path(folder), refresh=True).bytes_s


def drive_beside_bytes_s(path: Path, model: edge.Model) -> float:
    """What the drive under `path` gives while `model` computes. Raises StorageError."""
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
        minor_faults_per_token=spent.minor_faults / tokens,
        s_per_token=spent.stats.decode_s / tokens,
    )


def report(results: Sequence[DriveResult]) -> bool:
    """Print the medians of all rounds, and whether they hold."""

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
            _verdict(
                f"share of the drive: {share:.2f} >= {LEAST_DRIVE_SHARE}",
                share >= LEAST_DRIVE_SHARE,
            ),
            _verdict(
                f"CPU-seconds a GB read, beyond computing: {cpu_s:.2f} <= {MOST_CPU_S_PER_GB}",
                cpu_s <= MOST_CPU_S_PER_GB,
            ),
            _verdict(
                f"minor page faults a token: {faults:.0f} <= {MOST_FAULTS:g}",
                faults <= MOST_FAULTS,
            ),
        ]
    )


def _report_limited(path: Path, budget_bytes: int, tokens: int, plain_tokens: int) -> bool:
    ram = f"{budget_bytes}B"
    ours, plain = streamed_tok_s(path, ram, tokens), plain_tok_s(path, ram, plain_tokens)
    return _verdict(
        f"in {budget_bytes / 1e9:.2f} GB {1e3 / ours:.0f} ms a token, plain llama.cpp"
        f" {1e3 / plain:.0f}: {ours / plain:.1f} >= {LEAST_SPEEDUP:g} times",
        ours / plain >= LEAST_SPEEDUP,
    )


def _verdict(text: str, holds: bool) -> bool:
    print(f"{text}: {'holds' if holds else 'FAILS'}", flush=True)
    return holds


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns 0 if every bound holds."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", type=Path)
    parser.add_argument("--share", type=float, default=0.25, help="of the expert bytes")
    parser.add_argument("--tokens", type=positive, default=64)
    parser.add_argument("--rounds", type=positive, default=3)
    parser.add_argument("--limit", action="store_true", help="time plain llama.cpp, too")
    parser.add_argument("--plain-tokens", type=positive, default=8, help="with --limit")
    given = parser.parse_args(arguments)
    if given.limit and why_not():
        print(why_not(), file=sys.stderr)
        return 2
    try:
        planned = edge.plan(given.model, ram="1TiB", ctx=512)
        # planned before anything is loaded, as a process does that only streams
        budget_bytes = streamed(planned, given.share).planned_bytes
        held = [report(measure(planned, given.share, given.tokens, given.rounds))]
        if given.limit:
            tokens = given.tokens, given.plain_tokens
            held.append(_report_limited(given.model, budget_bytes, *tokens))
    except (HaversackError, OSError, RuntimeError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0 if all(held) else 1


if __name__ == "__main__":
    sys.exit(main())
