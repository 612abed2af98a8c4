"""Does it stay inside its budget? Runs a model under hard limits and prints what it took.

    python -m haversack.tools.bench_budget MODEL --ram 2.5GiB --ram 4GiB --ram 6GiB

Each run is a process of its own in a memory control group whose limit is the budget plus 64 MiB:
what it does not have, it cannot take. Bounds: it finishes, and its peak of anonymous memory is at
most the budget. Plain llama.cpp (mapped) runs under the same limit beside it if asked for.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from haversack.devices.units import format_bytes, parse_bytes
from haversack.tools.cgroup import run_limited, why_not

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
    done = run_limited(command, parse_bytes(ram) + SLACK_BYTES, timeout_s=900)
    if done.returncode != 0:
        raise RuntimeError(f"exit {done.returncode} under {ram}: {done.stderr.strip()[-500:]}")
    result: dict[str, object] = json.loads(done.stdout)
    return result


def plain_tok_s(model: Path, ram: str, tokens: int) -> float:
    """Tokens a second of plain llama.cpp, mapped, under the same limit."""
    code = (
        "import sys, random; from pathlib import Path;"
        " from haversack.tools.plain import PlainLlama;"
        " p = PlainLlama(Path(sys.argv[1]), 512, 2); r = random.Random(0);"
        " p.decode([7 * i % 500 for i in range(32)]);"
        " print(1 / p.decode_s_per_token([r.randrange(500) for _ in range(int(sys.argv[2]))]))"
    )
    command = [sys.executable, "-c", code, str(model), str(tokens)]
    done = run_limited(command, parse_bytes(ram) + SLACK_BYTES, timeout_s=900)
    if done.returncode != 0:
        raise RuntimeError(f"plain llama.cpp: exit {done.returncode}: {done.stderr[-500:]}")
    return float(done.stdout.split()[-1])


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns 0 if every bound holds."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("--ram", action="append", required=True, help="a budget; repeat for more")
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--plain-tokens", type=int, default=0, help="also time plain llama.cpp")
    given = parser.parse_args(arguments)
    if why_not():
        print(why_not(), file=sys.stderr)
        return 2
    held = True
    for ram in given.ram:
        result = run_in_budget(given.model, ram, given.tokens)
        peak_bytes, budget_bytes = int(str(result["ram_peak_bytes"])), parse_bytes(ram)
        held = held and peak_bytes <= budget_bytes
        print(
            f"--ram {ram}: {result['tokens']} tokens, {float(str(result['decode_tok_s'])):.2f} tok/s,"
            f" peak {format_bytes(peak_bytes)} <= {format_bytes(budget_bytes)}:"
            f" {'holds' if peak_bytes <= budget_bytes else 'FAILS'}"
        )
        if given.plain_tokens:
            print(
                f"  plain llama.cpp: {plain_tok_s(given.model, ram, given.plain_tokens):.2f} tok/s"
            )
    return 0 if held else 1


if __name__ == "__main__":
    sys.exit(main())
