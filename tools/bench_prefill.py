"""How near to its bounds does a prompt come? One batch, a share of the experts, a steady drive.

    python -m haversack.tools.bench_prefill MODEL [--share 0.25] [--rate 1GB] [--tokens 512]

A prompt of random tokens is computed with everything in memory and streamed, in turn, each round
another. Bounds: every expert that a layer needs and finds in no slot is read once, no byte more;
and the time is at most 1.25 of the larger of computing it in memory (before and after, the mean)
and reading what was read. Memory for the model and the share is needed. Bytes come from MODEL's own
drive, held back to the rate, where it is faster by a third, and else out of the page cache.
"""

import argparse
import statistics
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from haversack import edge
from haversack.devices.errors import HaversackError
from haversack.devices.units import parse_bytes
from haversack.edge.bench import random_tokens
from haversack.edge.planner import Plan, streamed
from haversack.quant.gguf import ModelGeometry
from haversack.tools.bench_drive import drive_bytes_s
from haversack.tools.counts import positive
from haversack.tools.steady import SteadyDrive, is_faster, warm

BOUND = 1.25


@dataclass(frozen=True)
class PrefillResult:
    """One prompt: what it took streamed and in memory, what was read, and what had to be."""

    prefill_s: float
    resident_s: float
    rate_bytes_s: float
    read_bytes: int
    needed_bytes: int

    @property
    def disk_s(self) -> float:
        """What reading takes at the drive's rate."""
        return self.read_bytes / self.rate_bytes_s

    @property
    def ratio(self) -> float:
        """The time over the larger of its bounds."""
        return self.prefill_s / max(self.resident_s, self.disk_s)

    @property
    def read_once(self) -> bool:
        """Whether nothing was read twice or needlessly."""
        return self.read_bytes <= self.needed_bytes

    def __str__(self) -> str:
        return (
            f"{1e3 * self.prefill_s:.0f} ms, in memory {1e3 * self.resident_s:.0f},"
            f" disk {1e3 * self.disk_s:.0f}: {self.ratio:.2f} of the bound;"
            f" read {self.read_bytes / 1e6:.0f} MB of {self.needed_bytes / 1e6:.0f} needed"
        )


class _Used:
    """Adds up the bytes of the distinct experts that layers choose for a batch; a watcher."""

    def __init__(self, geometry: ModelGeometry) -> None:
        self._expert_bytes = {layer.layer: layer.expert_bytes for layer in geometry.layers}
        self.num_bytes = 0

    def __call__(self, layer: int, ids: npt.NDArray[np.int32], _: object) -> None:
        self.num_bytes += len(np.unique(ids)) * self._expert_bytes[layer]


def prefill(model: edge.Model, prompt: Sequence[int]) -> edge.Stats:
    """What computing `prompt` took."""
    before = model.stats()
    model.logits(prompt, prefill=len(prompt))
    return model.stats().since(before)


def streamed_prefill(model: edge.Model, prompt: Sequence[int]) -> tuple[edge.Stats, int]:
    """The same, and the bytes of the experts that a layer chose and found in no slot."""
    geometry = model.plan.geometry
    used = _Used(geometry)
    model.watch_routing(used)
    spent = prefill(model, prompt)
    held_bytes = spent.hits * min(layer.expert_bytes for layer in geometry.layers)
    return spent, used.num_bytes - held_bytes


def measure(planned: Plan, share: float, bytes_s: float, rounds: int) -> list[PrefillResult]:
    """A result for each round; a prompt fills the plan's batch. One round goes before them, to fill
    slots and to touch their memory. Raises HaversackError."""
    from_drive = is_faster(drive_bytes_s(planned.path), bytes_s)
    drive = SteadyDrive(bytes_s, from_drive=from_drive)
    options = edge.LoadOptions(open_file=drive.open, warm_start=False)
    results: list[PrefillResult] = []
    with (
        edge.load(planned) as resident,
        edge.load(streamed(planned, share), options=options) as cramped,
    ):
        for number in range(rounds + 1):
            prompt = random_tokens(resident.vocab_size, planned.shape.batch_tokens, number)
            before = prefill(resident, prompt)
            spent, needed_bytes = streamed_prefill(cramped, prompt)
            after = prefill(resident, prompt)
            resident_s = (before.prefill_s + after.prefill_s) / 2
            if number > 0:
                results.append(
                    PrefillResult(
                        spent.prefill_s, resident_s, bytes_s, spent.bytes_read, needed_bytes
                    )
                )
                print(results[-1], flush=True)
    return results


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns 0 if both bounds hold."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", type=Path)
    parser.add_argument("--share", type=float, default=0.25, help="of the expert bytes")
    parser.add_argument("--rate", default="1GB", help="of the steady drive, a second")
    parser.add_argument("--tokens", type=positive, default=512)
    parser.add_argument("--rounds", type=positive, default=3)
    given = parser.parse_args(arguments)
    try:
        planned = edge.plan(given.model, ram="1TiB", ctx=given.tokens, batch=given.tokens)
        for path in planned.geometry.paths:
            warm(path)
        rate_bytes_s = float(parse_bytes(given.rate))
        results = measure(planned, given.share, rate_bytes_s, given.rounds)
    except (HaversackError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    once = all(result.read_once for result in results)
    ratio = statistics.median(result.ratio for result in results)
    print(f"read once what was in no slot, no byte more: {'holds' if once else 'FAILS'}")
    print(f"{ratio:.2f} <= {BOUND} of the bound (median): {'holds' if ratio <= BOUND else 'FAILS'}")
    return 0 if once and ratio <= BOUND else 1


if __name__ == "__main__":
    sys.exit(main())
