"""How fast is a start, and does it read only what it needs? Loads a model and makes one token.

    python -m haversack.tools.bench.start MODEL --ram 4GiB

The trunk file is there before. Bounds: the process reads no more than the trunk, the headers, and
the experts of the first token. The load takes less than 3 s (for a trunk of some hundred MB), and
comparing the trunk with its seal takes at most a tenth of it. Linux only, because bytes are counted
in /proc/self/io.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from unittest.mock import patch

from haversack import edge
from haversack.devices.units import format_bytes
from haversack.tools.command_line import positive, tool, verdict

BOUND_S = 3.0
MOST_CHECK_SHARE = 0.1
_HEADER_READS = 8  # planning, loading and the fingerprint each read the headers, some twice
_ELSE_BYTES = 4 * 1024 * 1024  # files that libraries read: /proc, locale, time zones


@dataclass(frozen=True)
class Start:
    """What a start took: the bytes that the process read and those that it needed, and seconds."""

    read_bytes: int
    needed_bytes: int
    load_s: float
    first_token_s: float

    @property
    def lean(self) -> bool:
        """Whether nothing was read that was not needed."""
        return self.read_bytes <= self.needed_bytes


def _bytes_read() -> int:
    lines = Path("/proc/self/io").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("rchar")).split()[1])


def measure_start(model: Path, ram: str | int, options: edge.LoadOptions) -> Start:
    """Load once to have the trunk file, then measure a second load and its first token. Experts
    that earlier runs left in slots are not loaded."""
    options = replace(options, warm_start=False)
    edge.load(model, ram=ram, ctx=512, options=options).close()
    before, started = _bytes_read(), time.perf_counter()
    with edge.load(model, ram=ram, ctx=512, options=options) as loaded:
        load_s = time.perf_counter() - started
        started = time.perf_counter()
        loaded.logits([1], prefill=1)
        first_token_s = time.perf_counter() - started
        stats, geometry = loaded.stats(), loaded.plan.geometry
    needed = geometry.trunk_bytes + _HEADER_READS * geometry.header_bytes + stats.bytes_read
    padding = 2 * 4096 * stats.misses * 3  # direct reads take whole pages
    return Start(_bytes_read() - before, needed + padding + _ELSE_BYTES, load_s, first_token_s)


@dataclass(frozen=True)
class CheckCost:
    """The fewest seconds of a load that compares the trunk with its seal, and of one that does not,
    because other programs only add to them; and the median processor seconds of both."""

    checked_s: float
    unchecked_s: float
    checked_cpu_s: float
    unchecked_cpu_s: float

    @property
    def share(self) -> float:
        """The comparison's share of the load's seconds."""
        return 1 - self.unchecked_s / self.checked_s

    @property
    def cpu_share(self) -> float:
        """The same of the processor seconds, which matter where there is a single core."""
        return 1 - self.unchecked_cpu_s / self.checked_cpu_s


def measure_check(
    model: Path, ram: str | int, options: edge.LoadOptions, num_rounds: int
) -> CheckCost:
    """Load `num_rounds` times with and as often without the comparison, in turns. The trunk file
    must be there."""
    options = replace(options, warm_start=False)
    planned = edge.plan(model, ram=ram, ctx=512)
    times_s: dict[bool, list[float]] = {True: [], False: []}
    cpu_s: dict[bool, list[float]] = {True: [], False: []}
    for number in range(2 * num_rounds):
        checked = number % 2 == number // 2 % 2  # so that neither is always the first of a pair
        with nullcontext() if checked else patch("haversack.offload.engine.TrunkCheck"):
            started, cpu_started = time.perf_counter(), time.process_time()
            loaded = edge.load(planned, options=options)
            times_s[checked].append(time.perf_counter() - started)
            cpu_s[checked].append(time.process_time() - cpu_started)
            loaded.close()
    medians_s = (statistics.median(cpu_s[checked]) for checked in (True, False))
    return CheckCost(min(times_s[True]), min(times_s[False]), *medians_s)


@tool
def main(arguments: Sequence[str] | None) -> int:
    """Return 0 if all bounds hold."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("--ram", required=True)
    parser.add_argument("--rounds", type=positive, default=9, help="of loads to compare")
    given = parser.parse_args(arguments)
    options = edge.LoadOptions(warm_start=False)
    start = measure_start(given.model, given.ram, options)
    cost = measure_check(given.model, given.ram, options, given.rounds)
    held = [
        verdict(
            f"read {format_bytes(start.read_bytes)}, needed {format_bytes(start.needed_bytes)};"
            f" loaded in {start.load_s:.2f} s (bound {BOUND_S:.0f} s), first token"
            f" {start.first_token_s:.2f} s",
            start.lean and start.load_s < BOUND_S,
        ),
        verdict(
            f"loaded in {cost.checked_s:.3f} s with the trunk compared with its seal,"
            f" {cost.unchecked_s:.3f} s without: {cost.share:.1%} of the load,"
            f" {cost.cpu_share:.1%} of its processor time (bound {MOST_CHECK_SHARE:.0%})",
            cost.share <= MOST_CHECK_SHARE,
        ),
    ]
    return 0 if all(held) else 1


if __name__ == "__main__":
    sys.exit(main())
