"""Many clients at once: does each get the answer that a lone client gets, within the budget?

Starts `haversack serve` in a process of its own, has a lone client ask everything once, and then
lets --clients ask at random for --seconds:

    python -m haversack.tools.bench.clients --clients 50 --seconds 120

A client that gets 503 asks again. Prints one line of
figures; the exit code is 1 if an answer differs, fails, or memory exceeds the budget.
"""

import argparse
import asyncio
import random
import re
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from haversack.edge.loading import builtin_model
from haversack.tools.command_line import lacking, positive, tool

try:
    import httpx
except ImportError as error:
    raise lacking(error, "test") from None

_PROMPTS = (
    "Tell me a story about a fox.",
    "Tell me a story about a hare and a crow, and what they said to each other.",
    "Why is the sky blue?",
    "Once upon a time there was a miller who had three sons.",
    "What did the bear do in winter?",
)
_TIMEOUT_S = 600.0


@dataclass(frozen=True)
class Load:
    """How many clients ask for how long."""

    clients: int = 50
    seconds: float = 120
    seeds: int = 4  # of each prompt
    max_tokens: int = 48


@dataclass
class Outcome:
    """What the clients got. `peak_bytes` is the most anonymous memory of the server's process."""

    counts: Counter[str]
    peak_bytes: int
    budget_bytes: int

    @property
    def is_good(self) -> bool:
        others = set(self.counts) - {"same", "refused"}
        return self.counts["same"] > 0 and not others and self.peak_bytes <= self.budget_bytes

    def __str__(self) -> str:
        told = self.counts
        return (
            f"{told['same']} answers were those of a lone client, {told['different']} were not,"
            f" {told['refused']} refusals (503), {told['failed']} other errors;"
            f" peak {self.peak_bytes:,} of {self.budget_bytes:,} bytes"
        )


@contextmanager
def served(
    model: Path, ram: str, parallel: int, queue: int, wrapper: Sequence[str] = ()
) -> Iterator[str]:
    """Run a server for the time of the block; its address. `wrapper` begins its command line."""
    command = [*wrapper, sys.executable, "-m", "haversack.edge", "serve", str(model), "--port", "0"]
    command += ["--ram", ram, "--parallel", str(parallel), "--queue", str(queue)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    try:
        address = re.search(r"http://\S+", process.stderr.readline())
        if address is None:
            raise RuntimeError(f"the server did not start: {process.stderr.read()}")
        yield address[0]
    finally:
        process.terminate()
        process.communicate()


async def measure(url: str, load: Load) -> Outcome:
    """Ask as a lone client, then as many."""
    limits = httpx.Limits(max_connections=load.clients)
    async with httpx.AsyncClient(base_url=url, timeout=_TIMEOUT_S, limits=limits) as client:
        asked = [_body(prompt, seed, load) for prompt in _PROMPTS for seed in range(load.seeds)]
        alone = [await _answer(client, body) for body in asked]
        counts, end_s = Counter[str](), time.monotonic() + load.seconds

        async def ask_on(number: int) -> None:
            draw = random.Random(number)
            while True:
                which = draw.randrange(len(asked))
                found = await _answer(client, asked[which])
                told = "same" if found == alone[which] else "different"
                counts[found if found in ("refused", "failed") else told] += 1
                if time.monotonic() > end_s and found != "refused":
                    return
                if found == "refused":
                    await asyncio.sleep(draw.random())

        await asyncio.gather(*map(ask_on, range(load.clients)))
        stats = (await client.get("/stats")).json()["model"]["stats"]
    return Outcome(counts, stats["ram_peak_bytes"], stats["ram_budget_bytes"])


def _body(prompt: str, seed: int, load: Load) -> dict[str, Any]:
    messages = [{"role": "user", "content": prompt}]
    return {"messages": messages, "seed": seed, "max_tokens": load.max_tokens}


async def _answer(client: httpx.AsyncClient, body: dict[str, Any]) -> str:
    answer = await client.post("/v1/chat/completions", json=body)
    if answer.status_code == 503:
        return "refused"
    if answer.status_code != 200:
        return "failed"
    return str(answer.json()["choices"][0]["message"]["content"])


@tool
def main(arguments: Sequence[str] | None = None) -> int:
    """Ask a server with many clients at once."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", type=Path, nargs="?", default=builtin_model(), metavar="MODEL")
    parser.add_argument("--ram", default="160MiB", help="the server's budget (160MiB)")
    for name, default in (("clients", 50), ("seconds", 120), ("parallel", 4), ("queue", 40)):
        parser.add_argument(f"--{name}", type=positive, default=default, help=f"({default})")
    asked = parser.parse_args(arguments)
    with served(asked.model, asked.ram, asked.parallel, asked.queue) as url:
        outcome = asyncio.run(measure(url, Load(asked.clients, asked.seconds)))
    print(outcome)
    return int(not outcome.is_good)


if __name__ == "__main__":
    sys.exit(main())
