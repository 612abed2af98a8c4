"""Does it stay inside its budget? Runs a model under hard limits and prints what it took.

    python -m haversack.tools.bench.budget MODEL --ram 2.5GiB --ram 4GiB --ram 6GiB

Each run is a process of its own in a memory control group whose limit, swap included, is the budget
plus 64 MiB: what it does not have, it cannot take. Bounds: it finishes, and its peak of anonymous
memory is at most the budget. With `--plain-tokens N`, decoding random tokens is timed beside plain
llama.cpp under the same limit.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from haversack.devices.cores import usable_cores
from haversack.devices.system.cgroup import run_limited, why_not
from haversack.devices.units import format_bytes, parse_bytes
from haversack.edge.plain_llama import PlainLlama, drop_pages
from haversack.tools.counts import positive
from haversack.tools.program import run

SLACK_BYTES = 64 * 1024 * 1024
PROMPT = " ".join(str(7 * i % 500) for i in range(32))


def run_in_budget(
    model: Path, ram: str, tokens: int, cache_dir: Path | None = None
) -> dict[str, object]:
    """One `haversack run` under the limit: its JSON. Raises RuntimeError if it fails."""
    command = [
        *(sys.executable, "-m", "haversack.edge", "run", str(model), "-p", PROMPT),
        *("-n", str(tokens), "--temp", "0", "--ctx", "512", "--ram", ram, "--json"),
        *(("--cache-dir", str(cache_dir)) if cache_dir else ()),
    ]
    result: dict[str, object] = json.loads(output_within(command, ram))
    return result


def streamed_tok_s(model: Path, ram: str, tokens: int) -> float:
    """Tokens a second of decoding random tokens under the limit."""
    command = [
        *(sys.executable, "-m", "haversack.edge", "bench", str(model), "--ram", ram),
        *("-p", "32", "--warm-tokens", "0", "-n", str(tokens), "--ctx", "512", "--json"),
    ]
    return float(json.loads(output_within(command, ram))["decode_tok_s"])


def plain_tok_s(model: Path, ram: str, tokens: int) -> float:
    """The same of plain llama.cpp, which maps the model."""
    drop_pages([model])
    command = [sys.executable, "-m", "haversack.tools.bench.budget", str(model)]
    return float(output_within([*command, "--plain-here", str(tokens)], ram).split()[-1])


def _plain_here(model: Path, tokens: int) -> float:
    rng = np.random.default_rng(0)
    with PlainLlama(model, 512, usable_cores()) as plain:
        plain.decode(rng.integers(0, 500, 32).tolist())
        return 1 / plain.decode_s_per_token(rng.integers(0, 500, tokens).tolist())


def output_within(command: Sequence[str], ram: str) -> str:
    """What `command` prints under the limit. Raises RuntimeError if it fails."""
    done = run_limited(command, parse_bytes(ram) + SLACK_BYTES, timeout_s=900)
    if done.returncode != 0:
        raise RuntimeError(f"exit {done.returncode} under {ram}: {done.stderr.strip()[-500:]}")
    return done.stdout


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns 0 if every bound holds."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("--ram", action="append", default=[], help="a budget; repeat for more")
    parser.add_argument("--tokens", type=positive, default=64)
    parser.add_argument("--plain-tokens", type=int, default=0, help="time plain llama.cpp, too")
    parser.add_argument("--plain-here", type=int, default=0, help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    if given.plain_here:
        print(_plain_here(given.model, given.plain_here))
        return 0
    if why_not():
        print(why_not(), file=sys.stderr)
        return 2
    held = [_report(given.model, ram, given.tokens, given.plain_tokens) for ram in given.ram]
    return 0 if all(held) else 1


def _report(model: Path, ram: str, tokens: int, plain_tokens: int) -> bool:
    result = run_in_budget(model, ram, tokens)
    peak_bytes, budget_bytes = int(str(result["ram_peak_bytes"])), parse_bytes(ram)
    held = peak_bytes <= budget_bytes
    print(
        f"--ram {ram}: {result['tokens']} tokens, peak {format_bytes(peak_bytes)} <="
        f" {format_bytes(budget_bytes)}: {'holds' if held else 'FAILS'}"
    )
    if plain_tokens:
        ours = streamed_tok_s(model, ram, tokens)
        plain = plain_tok_s(model, ram, plain_tokens)
        print(f"  random tokens: {ours:.2f} tok/s, plain llama.cpp {plain:.2f} tok/s")
    return held


if __name__ == "__main__":
    run(main)
