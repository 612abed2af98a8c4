"""How fast memory follows `resize` while a text is written, down and up, beside its bound.

    python -m haversack.tools.bench.resizing MODEL [--rounds 5] [--tokens 400]

A thread resizes between slots for a tenth and for nine tenths of the experts while another writes.
Down, the process must hold the slots' bytes less within a second of the call. Up, the new bytes may
be taken at once, and are as reads come. Prints both times; the exit code is 1 if the text changed
or a bound does not hold.
"""

import argparse
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from haversack import edge
from haversack.devices.memory import anonymous_bytes
from haversack.devices.units import format_bytes
from haversack.edge.planner import streamed
from haversack.tools.command_line import positive, tool, verdict

_LOW_SHARE, _HIGH_SHARE = 0.1, 0.9
_BOUND_S = 1.0
_GROWTH_BYTES = 64 * 1024 * 1024  # of the process itself meanwhile
_PAUSE_S = 1.0  # in which slots fill again
_FOLLOWED = 0.9  # of the bytes that slots held


@dataclass(frozen=True)
class Following:
    """How long a call of `resize` took, and until so many bytes had gone back to the system."""

    call_s: float
    followed_s: float
    freed_bytes: int


def main_text(model: edge.Model, tokens: int) -> list[int]:
    """Return the tokens that the model writes."""
    generation = model.generate([1, 2, 3], tokens, temperature=0)
    assert generation.text
    return generation.tokens


def shrink(model: edge.Model, ram_bytes: int) -> Following:
    """Resize and wait until the memory has followed, at most ten times as long as it may take."""
    held_bytes = _slots_held_bytes(model)
    before_bytes = anonymous_bytes()
    began_s = time.perf_counter()
    model.resize(ram_bytes)
    call_s = time.perf_counter() - began_s
    goal_bytes = int(_FOLLOWED * max(0, held_bytes - model.plan.slot_bytes))
    while before_bytes - anonymous_bytes() < goal_bytes:
        if time.perf_counter() - began_s > 10 * _BOUND_S:
            break
        time.sleep(0.002)
    return Following(
        call_s, time.perf_counter() - began_s, max(0, before_bytes - anonymous_bytes())
    )


def _slots_held_bytes(model: edge.Model) -> int:
    return next(entry.held_bytes for entry in model.budget() if entry.name == "slots")


def measure(path: Path, rounds: int, tokens: int) -> bool:
    """Resize `rounds` times down and up while texts are written; return whether all holds."""
    whole = streamed(edge.plan(path, ctx=tokens + 64), _HIGH_SHARE)
    low_bytes = streamed(whole, _LOW_SHARE).slot_bytes
    high_ram = whole.planned_bytes + _GROWTH_BYTES
    low_ram = high_ram - whole.slot_bytes + low_bytes
    options = edge.LoadOptions(warm_start=False, speculate="off")
    with edge.load(whole, options=options) as model:
        expected, done = main_text(model, tokens), threading.Event()
        texts = list[list[int]]()

        def write() -> None:
            while not done.is_set():
                texts.append(main_text(model, tokens))

        writer = threading.Thread(target=write)
        writer.start()
        downs, ups = list[Following](), list[float]()
        try:
            for _ in range(rounds):
                time.sleep(_PAUSE_S)
                downs.append(shrink(model, low_ram))
                began_s = time.perf_counter()
                model.resize(high_ram)
                ups.append(time.perf_counter() - began_s)
        finally:
            done.set()
            writer.join()
        model.check_integrity()
    for down, up_s in zip(downs, ups, strict=True):
        print(
            f"down: {down.call_s:.3f} s, {format_bytes(down.freed_bytes)} gone after"
            f" {down.followed_s:.3f} s; up: {up_s:.3f} s"
        )
    same = all(text == expected for text in texts)
    held = verdict(f"all {len(texts)} texts written meanwhile are the same", same)
    slowest_s = max(max(down.followed_s, up_s) for down, up_s in zip(downs, ups, strict=True))
    return verdict(f"memory follows in {slowest_s:.3f} s, bound 1 s", slowest_s < _BOUND_S) and held


@tool
def main(arguments: Sequence[str] | None) -> int:
    """Measure what the command line asks for; the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", type=Path)
    parser.add_argument("--rounds", type=positive, default=5)
    parser.add_argument("--tokens", type=positive, default=400)
    given = parser.parse_args(arguments)
    return 0 if measure(given.model, given.rounds, given.tokens) else 1


if __name__ == "__main__":
    sys.exit(main())
