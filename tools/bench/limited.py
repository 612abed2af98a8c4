"""Running haversack's own commands in a memory control group, alone and beside plain llama.cpp.

Plain llama.cpp maps the model; it gets the same tokens, the same routing, the same drive and the
same memory. Works as root on Linux only (see `devices.system.cgroup.why_not`).
"""

import json
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from haversack.devices.system.cgroup import run_limited
from haversack.devices.units import format_bytes
from haversack.edge.measure_options import LLAMA_CPP
from haversack.edge.model_plan import Plan
from haversack.edge.planner import streamed
from haversack.edge.replay import Trace

SLACK_BYTES = 64 * 1024 * 1024  # a group's limit is the budget plus this
CTX_TOKENS = 512

# Not timed, because slots and page cache fill meanwhile. Few: mapped experts take seconds a token.
_WARM_TOKENS = 16
_PROMPT_TOKENS = 32
_TIMEOUT_S = 1800


def json_within(command: str, model: Path, ram_bytes: int, *options: str) -> dict[str, Any]:
    """Return what `haversack COMMAND MODEL --json` prints in a group whose limit, swap included, is
    the budget plus 64 MiB. Raises RuntimeError if the command fails."""
    words = (command, str(model), "--ram", f"{ram_bytes}B", "--ctx", str(CTX_TOKENS), "--json")
    line = [sys.executable, "-m", "haversack.edge", *words, *options]
    done = run_limited(line, ram_bytes + SLACK_BYTES, _TIMEOUT_S)
    if done.returncode != 0:
        reason = done.stderr.strip()[-500:]
        raise RuntimeError(f"exit {done.returncode} under {format_bytes(ram_bytes)}: {reason}")
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def compared(model: Path, ram_bytes: int, tokens: int, trace: Path | None = None) -> dict[str, Any]:
    """Return what `haversack bench --compare` finds in such a group, with the routing recorded in
    `trace` forced upon both engines if that is given. Raises RuntimeError if it fails."""
    options = [
        *("-p", str(_PROMPT_TOKENS), "--warm-tokens", str(_WARM_TOKENS), "-n", str(tokens)),
        *("--compare", LLAMA_CPP),
        *(("--trace", str(trace)) if trace else ()),
    ]
    return json_within("bench", model, ram_bytes, *options)


@dataclass(frozen=True)
class LimitedResult:
    """Both engines' seconds a token with `share` of the experts in slots.

    The bound is that of `haversack bench`: the larger of the time to compute a token and the time
    to read its bytes at `device_bytes_s`. `forced` says whether the trace's routing was forced;
    where all experts are in memory none can be.
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
    """Yield a result for each share. Make `planned` before this process loads a model, because the
    engines run in processes that have loaded nothing. Raises RuntimeError if one fails."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "forced.npz"
        trace.save(file)
        for share in shares:
            ram_bytes = streamed(planned, share).planned_bytes
            forced = ram_bytes < planned.full_bytes
            found = compared(planned.path, ram_bytes, tokens, file if forced else None)
            yield LimitedResult(
                trace=trace.name,
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
