"""Does a model stay inside its budget, and is it never slower with more memory?

    sudo python -m haversack.tools.bench.budget MODEL --ram 2.5GiB --ram 4GiB --ram 6GiB

Each run is a process of its own in a memory control group whose limit, swap included, is the budget
plus 64 MiB, so the system kills a run that takes more. Bounds: each run finishes, and its peak of
anonymous memory is at most the budget. Decoding random tokens never slows down by more than 3 % as
the budget grows (medians of `--rounds` runs; the budgets take turns). With `--plain-tokens N`,
plain llama.cpp, which maps the model, decodes N tokens under the same limit; where not all experts
fit, it takes at least 20 times as long a token.
"""

import argparse
import sys
from collections.abc import Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from statistics import median
from typing import Any

from haversack.devices.system.cgroup import why_not
from haversack.devices.units import format_bytes, parse_bytes
from haversack.edge.model_plan import STREAMED
from haversack.tools.bench.limited import compared, json_within
from haversack.tools.command_line import USAGE_EXIT_CODE, positive, tool, verdict

MOST_LOSS, LEAST_SPEEDUP = 0.03, 20.0
PROMPT = " ".join(str(7 * i % 500) for i in range(32))


def run_in_budget(model: Path, ram_bytes: int, tokens: int, *options: str) -> dict[str, Any]:
    """Return the JSON of one `haversack run` under the limit. Raises RuntimeError if it fails."""
    text = ["-p", PROMPT, "-n", str(tokens), "--temp", "0"]
    return json_within("run", model, ram_bytes, *text, *options)


def decode_tok_s(model: Path, ram_bytes: int, tokens: int) -> float:
    """Return the tokens a second of decoding random tokens under the limit, the first included."""
    asked = ["-p", "32", "--warm-tokens", "0", "-n", str(tokens)]
    return float(json_within("bench", model, ram_bytes, *asked)["decode_tok_s"])


def never_slower(speeds: Mapping[int, float]) -> bool:
    """Print the tokens a second of each budget; return whether none is slower than a smaller one,
    but for the loss allowed."""
    budgets = sorted(speeds)
    best = accumulate((speeds[ram_bytes] for ram_bytes in budgets), max)
    held = [
        verdict(
            f"{format_bytes(ram_bytes)}: {speeds[ram_bytes]:.2f} tok/s,"
            f" {speeds[ram_bytes] / best_tok_s:.3f} >= {1 - MOST_LOSS:g} of the best so far",
            speeds[ram_bytes] >= (1 - MOST_LOSS) * best_tok_s,
        )
        for ram_bytes, best_tok_s in zip(budgets, best, strict=True)
    ]
    return all(held)


def _stays_inside(model: Path, ram_bytes: int, tokens: int) -> bool:
    result = run_in_budget(model, ram_bytes, tokens)
    return verdict(
        f"{result['tokens']} tokens, peak {format_bytes(result['ram_peak_bytes'])} <="
        f" {format_bytes(ram_bytes)}",
        result["ram_peak_bytes"] <= ram_bytes,
    )


def _beats_mapping(model: Path, ram_bytes: int, tokens: int) -> bool:
    found = compared(model, ram_bytes, tokens)
    times = found["decode_times_faster"]
    line = (
        f"in {format_bytes(ram_bytes)} {found['decode_tok_s']:.2f} tok/s, plain llama.cpp"
        f" {found['compare_decode_tok_s']:.2f}"
    )
    if found["mode"] != STREAMED:
        print(f"{line}: all experts are in memory, no bound")
        return True
    return verdict(f"{line}: {times:.1f} >= {LEAST_SPEEDUP:g} times", times >= LEAST_SPEEDUP)


@tool
def main(arguments: Sequence[str] | None) -> int:
    """Return 0 if every bound holds."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", type=Path)
    parser.add_argument("--ram", action="append", required=True, help="a budget; repeat for more")
    parser.add_argument("--tokens", type=positive, default=64)
    parser.add_argument("--rounds", type=positive, default=3, help="of timing each budget")
    parser.add_argument("--plain-tokens", type=positive, help="time plain llama.cpp, too")
    given = parser.parse_args(arguments)
    budgets = [parse_bytes(ram) for ram in given.ram]
    if why_not():
        print(why_not(), file=sys.stderr)
        return USAGE_EXIT_CODE
    held = [_stays_inside(given.model, ram_bytes, given.tokens) for ram_bytes in budgets]
    rounds = [
        [decode_tok_s(given.model, ram_bytes, given.tokens) for ram_bytes in budgets]
        for _ in range(given.rounds)
    ]
    medians = [median(speeds) for speeds in zip(*rounds, strict=True)]
    held.append(never_slower(dict(zip(budgets, medians, strict=True))))
    if given.plain_tokens:
        held += [_beats_mapping(given.model, each, given.plain_tokens) for each in budgets]
    return 0 if all(held) else 1


if __name__ == "__main__":
    sys.exit(main())
