"""Does decoding stay fast beside other busy programs? It competes with fixed settings of threads.

    python -m haversack.tools.bench.busy [MODEL] [--ram 96MiB] [--rounds 3] [--tokens 100]

haversack's default settings compete with each number of threads and each way of waiting that OpenMP
has: beside no busy loop, beside as many as there are cores, and beside twice as many. Each run is a
process of its own, and the settings take turns. Bounds: at least 0.98 of the speed of the best
fixed setting on a quiet machine, at least 0.8 on a busy one, and the same text everywhere.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from haversack import edge
from haversack.devices.cores import usable_cores
from haversack.edge.bench import Work, decode, logits_sha256, random_tokens
from haversack.tools.command_line import positive, tool, verdict, write_rows

QUIET_BOUND, BUSY_BOUND = 0.98, 0.8
WAITS: dict[str, dict[str, str]] = {
    "spinning": {"OMP_WAIT_POLICY": "active"},
    "spinning briefly": {"GOMP_SPINCOUNT": "10000"},
    "sleeping": {"OMP_WAIT_POLICY": "passive"},
}
PROMPT = 16  # tokens computed at once, before those that are timed


@dataclass(frozen=True)
class Competitor:
    """One way to run: the number of threads, and environment variables that say how to wait."""

    name: str
    threads: int | None
    environment: Mapping[str, str]


OURS = Competitor("haversack", None, {})


def fixed_settings(num_cores: int) -> list[Competitor]:
    """Return every number of threads, and for more than one thread every way of waiting."""
    alone = Competitor("1 thread", 1, WAITS["sleeping"])
    teams = [
        Competitor(f"{num} threads {wait}", num, environment)
        for num in range(2, num_cores + 1)
        for wait, environment in WAITS.items()
    ]
    return [alone, *teams]


@contextmanager
def busy_loops(count: int) -> Iterator[None]:
    """Run `count` other processes inside the block; each wants a core."""
    loops = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    try:
        yield
    finally:
        for loop in loops:
            loop.kill()
            loop.wait()


def decode_here(given: argparse.Namespace) -> dict[str, Any]:
    """Decode the same random tokens again and again for `given.seconds`, after once that is not
    timed. Return the tokens a second, and digests of the logits after the last token, which depend
    on all tokens."""
    with edge.load(given.model, ram=given.ram, ctx=256, threads=given.threads) as loaded:
        work = Work(random_tokens(loaded.vocab_size, PROMPT + given.tokens, seed=0), PROMPT, 0)
        decode(loaded, work)
        before, end_s = loaded.stats(), time.perf_counter() + given.seconds
        found = set[str]()
        while time.perf_counter() < end_s:
            found.add(logits_sha256(decode(loaded, work).logits)[:12])
        return {"tok_s": loaded.stats().since(before).decode_tok_s, "texts": sorted(found)}


def run_once(competitor: Competitor, given: argparse.Namespace) -> dict[str, Any]:
    """Do the same in a process of its own. Raises RuntimeError if it fails."""
    command = [sys.executable, "-m", "haversack.tools.bench.busy", str(given.model), "--here"]
    command += ["--seconds", str(given.seconds), "--tokens", str(given.tokens)]
    command += [] if given.ram is None else ["--ram", given.ram]
    command += [] if competitor.threads is None else ["--threads", str(competitor.threads)]
    kept = {k: v for k, v in os.environ.items() if k not in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")}
    done = subprocess.run(
        command, env={**kept, **competitor.environment}, capture_output=True, text=True
    )
    if done.returncode != 0:
        raise RuntimeError(done.stderr.strip().splitlines()[-1])
    result: dict[str, Any] = json.loads(done.stdout)
    return result


def compare(num_loops: int, given: argparse.Namespace) -> tuple[list[dict[str, Any]], set[str]]:
    """Return a row for each competitor, medians of the rounds, and the texts that ours wrote."""
    competitors = [OURS, *fixed_settings(usable_cores())]
    speeds: dict[str, list[float]] = {competitor.name: [] for competitor in competitors}
    texts = set[str]()
    with busy_loops(num_loops):
        for _ in range(given.rounds):
            for competitor in competitors:
                result = run_once(competitor, given)
                speeds[competitor.name].append(result["tok_s"])
                texts |= set(result["texts"]) if competitor is OURS else set()
    rows = [
        {"busy_loops": num_loops, "setting": name, "tok_s": round(statistics.median(found), 1)}
        for name, found in speeds.items()
    ]
    return rows, texts


def holds(rows: Sequence[Mapping[str, Any]]) -> bool:
    """Print ours (the first row) beside the best of the others; return whether the bound holds."""
    ours, *fixed = rows
    best = max(fixed, key=lambda row: float(row["tok_s"]))
    bound = BUSY_BOUND if ours["busy_loops"] else QUIET_BOUND
    ratio = ours["tok_s"] / best["tok_s"]
    return verdict(
        f"{ours['busy_loops']} busy loops: {ours['tok_s']} tok/s, {ratio:.2f} of the best fixed"
        f" setting ({best['setting']}, {best['tok_s']}), bound {bound}",
        ratio >= bound,
    )


@tool
def main(arguments: Sequence[str] | None) -> int:
    """Return 0 if all bounds hold."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("model", type=Path, nargs="?", default=edge.builtin_model())
    parser.add_argument("--ram", help="as of haversack run; all in memory unless given")
    parser.add_argument("--rounds", type=positive, default=3)
    parser.add_argument("--seconds", type=positive, default=5, help="each run is timed for")
    parser.add_argument("--tokens", type=positive, default=100, help="of a text")
    parser.add_argument("--csv", type=Path, help="write the table to this file")
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--threads", type=positive, help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    if given.here:
        print(json.dumps(decode_here(given)))
        return 0
    held, texts, table = list[bool](), set[str](), list[dict[str, Any]]()
    for num_loops in (0, usable_cores(), 2 * usable_cores()):
        rows, written = compare(num_loops, given)
        table, texts = table + rows, texts | written
        for row in rows:
            print(f"  {row['setting']:<28}{row['tok_s']:>8} tok/s")
        held.append(holds(rows))
    held.append(verdict("the text is the same in all", len(texts) == 1))
    if given.csv is not None:
        write_rows(given.csv, table)
    return 0 if all(held) else 1


if __name__ == "__main__":
    sys.exit(main())
