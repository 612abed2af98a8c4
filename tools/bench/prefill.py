"""How near to its bounds does a prompt come? One batch, with a share of the experts in slots.

    python -m haversack.tools.bench.prefill MODEL [--share 0.25] [--rate 1GB] [--tokens 512]

In each round, another prompt of random tokens is computed with everything in memory, then streamed
from a steady drive, then in memory again. Bounds: an expert that a layer needs and that lies in no
slot is read once, and wrong prefetches read at most a fiftieth of these bytes besides. The time is
at most 1.16 of the larger of two: the time in memory (the mean of before and after), and the time
to read the bytes at the drive's rate. Memory for the model and the share is needed. Bytes come from
MODEL's own drive, held back to the rate, if it is faster by a third; else from the page cache.
"""

import statistics
import sys
from collections.abc import Sequence
from dataclasses import dataclass

from haversack import edge
from haversack.devices.units import parse_bytes
from haversack.edge.bench import random_tokens
from haversack.edge.model_plan import Plan
from haversack.edge.planner import streamed
from haversack.tools.bench.steady_drive import steady_drive, warm
from haversack.tools.command_line import streaming_parser, tool, verdict

BOUND, MOST_WRONG = 1.16, 0.02


@dataclass(frozen=True)
class PrefillResult:
    """One prompt: its seconds streamed and in memory, and the bytes that were read, that were
    needed, and that wrong prefetches read."""

    prefill_s: float
    resident_s: float
    rate_bytes_s: float
    read_bytes: int
    needed_bytes: int
    wrong_bytes: int

    @property
    def disk_s(self) -> float:
        """The seconds that reading takes at the drive's rate."""
        return self.read_bytes / self.rate_bytes_s

    @property
    def ratio(self) -> float:
        """The time over the larger of its bounds."""
        return self.prefill_s / max(self.resident_s, self.disk_s)

    @property
    def read_once(self) -> bool:
        """Whether nothing was read twice, and little was prefetched wrongly."""
        return (
            self.read_bytes <= self.needed_bytes + self.wrong_bytes
            and self.wrong_bytes <= MOST_WRONG * self.needed_bytes
        )

    def __str__(self) -> str:
        return (
            f"{1e3 * self.prefill_s:.0f} ms, in memory {1e3 * self.resident_s:.0f},"
            f" disk {1e3 * self.disk_s:.0f}: {self.ratio:.2f} of the bound;"
            f" read {self.read_bytes / 1e6:.0f} MB where {self.needed_bytes / 1e6:.0f} were needed,"
            f" {self.wrong_bytes / 1e6:.0f} prefetched wrongly"
        )


def prefill(model: edge.Model, prompt: Sequence[int]) -> edge.Stats:
    """Compute `prompt`; return what it took."""
    before = model.stats()
    model.logits(prompt, prefill=len(prompt))
    return model.stats().since(before)


def measure(planned: Plan, share: float, bytes_s: float, rounds: int) -> list[PrefillResult]:
    """Return a result for each round; a prompt fills the plan's batch. A round that does not count
    goes before them: it fills slots and touches their memory. Raises HaversackError."""
    drive = steady_drive(planned.path, bytes_s)
    options = edge.LoadOptions(open_file=drive.open, warm_start=False)
    results: list[PrefillResult] = []
    with (
        edge.load(planned) as resident,
        edge.load(streamed(planned, share), options=options) as cramped,
    ):
        for number in range(rounds + 1):
            prompt = random_tokens(resident.vocab_size, planned.shape.batch_tokens, number)
            before = prefill(resident, prompt)
            spent = prefill(cramped, prompt)
            after = prefill(resident, prompt)
            if number > 0:
                results.append(_result(planned, before, spent, after, bytes_s))
                print(results[-1], flush=True)
    return results


def _result(
    planned: Plan, before: edge.Stats, spent: edge.Stats, after: edge.Stats, bytes_s: float
) -> PrefillResult:
    expert_bytes = max(layer.expert_bytes for layer in planned.geometry.layers)
    return PrefillResult(
        prefill_s=spent.prefill_s,
        resident_s=(before.prefill_s + after.prefill_s) / 2,
        rate_bytes_s=bytes_s,
        read_bytes=spent.bytes_read,
        needed_bytes=spent.needed * expert_bytes,
        wrong_bytes=(spent.prefetched - spent.prefetched_right) * expert_bytes,
    )


@tool
def main(arguments: Sequence[str] | None) -> int:
    """Return 0 if both bounds hold."""
    parser = streaming_parser(__doc__, tokens=512)
    parser.add_argument("--rate", default="1GB", help="of the steady drive, a second")
    given = parser.parse_args(arguments)
    planned = edge.plan(given.model, ram="1TiB", ctx=given.tokens, batch=given.tokens)
    for path in planned.geometry.paths:
        warm(path)
    rate_bytes_s = float(parse_bytes(given.rate))
    results = measure(planned, given.share, rate_bytes_s, given.rounds)
    once = all(result.read_once for result in results)
    ratio = statistics.median(result.ratio for result in results)
    held = [
        verdict("read once what was in no slot, little else", once),
        verdict(f"{ratio:.2f} <= {BOUND} of the bound (median)", ratio <= BOUND),
    ]
    return 0 if all(held) else 1


if __name__ == "__main__":
    sys.exit(main())
