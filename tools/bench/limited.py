"""A model beside plain llama.cpp, which maps it: the same tokens and the same routing, on the same
drive, within the same memory."""

import json
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from haversack.edge.planner import Plan, streamed
from haversack.edge.replay import Trace
from haversack.tools.bench.budget import output_within

# Not timed, while slots and page cache fill: mapped experts take seconds a token.
WARM_TOKENS = 16


@dataclass(frozen=True)
class LimitedResult:
    """Both engines' seconds a token with `share` of the experts in slots. The bound is ours, as
    `haversack bench` has it: the larger of computing and of reading the bytes at `device_bytes_s`.
    `forced` says whether the routing was the trace's: none can be where all experts are in memory.
    """

    trace: str
    share: float
    ram_bytes: int
    forced: bool
    device_bytes_s: float
    s_per_token: float
    plain_s_per_token: float
    compute_s: float
    bound_s: float
    ratio: float
    hit_rate: float
    bytes_per_token: float

    def __str__(self) -> str:
        return (
            f"{100 * self.share:g} % in {self.ram_bytes / 1e9:.2f} GB, drive"
            f" {self.device_bytes_s / 1e9:.2f} GB/s,"
            f" {'recorded' if self.forced else 'own'} routing:"
            f" {1e3 * self.s_per_token:.1f} ms a token, {self.ratio:.2f} of the bound; plain"
            f" llama.cpp {1e3 * self.plain_s_per_token:.1f} ms,"
            f" {self.plain_s_per_token / self.s_per_token:.1f} times as long"
        )


def measure_limited(
    planned: Plan, trace: Trace, shares: Sequence[float], tokens: int
) -> Iterator[LimitedResult]:
    """A result for each share, as they come; only as root on Linux. Plan before anything is loaded,
    as the engines will that run in processes of their own. Raises RuntimeError where one fails."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "forced.npz"
        trace.save(file)
        for share in shares:
            ram_bytes = streamed(planned, share).planned_bytes
            forced = ram_bytes < planned.full_bytes
            found = _compared(planned.path, ram_bytes, tokens, file if forced else None)
            yield _result(trace.name, share, ram_bytes, forced, found)


def _compared(path: Path, ram_bytes: int, tokens: int, trace: Path | None) -> dict[str, float]:
    command = [
        *(sys.executable, "-m", "haversack.edge", "bench", str(path), "--ram", f"{ram_bytes}B"),
        *("-p", "32", "--warm-tokens", str(WARM_TOKENS), "-n", str(tokens), "--ctx", "512"),
        *(("--trace", str(trace)) if trace else ()),
        *("--compare", "llama.cpp", "--json"),
    ]
    found: dict[str, float] = json.loads(output_within(command, f"{ram_bytes}B"))
    return found


def _result(
    trace: str, share: float, ram_bytes: int, forced: bool, found: dict[str, float]
) -> LimitedResult:
    return LimitedResult(
        trace=trace,
        share=share,
        ram_bytes=ram_bytes,
        forced=forced,
        device_bytes_s=found["device_bytes_s"],
        s_per_token=found["decode_s_per_token"],
        plain_s_per_token=found["compare_decode_s_per_token"],
        compute_s=found["compute_s_per_token"],
        bound_s=found["bound_s_per_token"],
        ratio=found["ratio_to_bound"],
        hit_rate=found["hit_rate"],
        bytes_per_token=found["bytes_read_per_token"],
    )
