"""Does closing a model give all its memory back? Models are opened, used and closed in rounds.

    python -m haversack.tools.bench.rounds --rounds 100

In each round three models are loaded, generate a few tokens and are closed, one after the other:
the built-in one in memory, the same streamed, and MODEL (by default a small random
Mixture-of-Experts model, made in a temporary folder). Bound: the anonymous memory of the process
after the last round is at most 2 MiB larger than after the fifth.
"""

import argparse
import gc
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from haversack import edge
from haversack.devices.memory import anonymous_bytes
from haversack.devices.units import format_bytes
from haversack.edge.planner import streamed
from haversack.tools.command_line import positive, tool, verdict
from haversack.tools.models.synth import write_tiny

WARM_ROUNDS = 5
BOUND_BYTES = 2 * 1024 * 1024
SHARE = 0.3


def play_round(models: Mapping[Path, float | None], folder: Path, number: int) -> int:
    """Use each model once, with slots for the given share of its experts (None: all in memory);
    trunk files lie in `folder`. Return the anonymous bytes afterwards."""
    for path, share in models.items():
        use_once(path, share, folder, number)
    gc.collect()
    return anonymous_bytes()


def use_once(path: Path, share: float | None, folder: Path, number: int) -> None:
    """Load the model, with slots for `share` of its experts unless it is None, have it generate a
    few tokens, and close it."""
    planned = edge.plan(path, ram="16GiB", ctx=256)
    if share is not None:
        planned = streamed(planned, share)
    with edge.load(planned, seed=number, options=edge.LoadOptions(cache_dir=folder)) as model:
        for _ in model.generate(model_prompt(model), max_tokens=6):
            pass


def model_prompt(model: edge.Model) -> str | list[int]:
    """Return a text, or ids for a model without a vocabulary."""
    try:
        model.tokenize("Once upon a time")
    except edge.PromptError:
        return [1, 2, 3]
    return "Once upon a time"


def three_models(folder: Path, third: Path | None) -> dict[Path, float | None]:
    """Return the models of a round, each with the share of its experts that gets slots."""
    resident, builtin = folder / "resident.gguf", edge.builtin_model()
    resident.symlink_to(builtin)
    third = third or write_tiny("qwen3moe", folder / "random.gguf")[0]
    return {resident: None, builtin: SHARE, third: None}


@tool
def main(arguments: Sequence[str] | None) -> int:
    """Return 0 if the bound holds."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("model", type=Path, nargs="?", help="the third model")
    parser.add_argument("--rounds", type=positive, default=100)
    given = parser.parse_args(arguments)
    if given.rounds <= WARM_ROUNDS:
        parser.error(f"--rounds is {given.rounds}: give more than {WARM_ROUNDS}")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        models = three_models(folder, given.model)
        held = [play_round(models, folder, number) for number in range(given.rounds)]
    warm_bytes, last_bytes = held[WARM_ROUNDS - 1], held[-1]
    holds = verdict(
        f"{format_bytes(warm_bytes)} after {WARM_ROUNDS} rounds, {format_bytes(last_bytes)} after"
        f" {given.rounds}: {format_bytes(last_bytes - warm_bytes)} more <="
        f" {format_bytes(BOUND_BYTES)}",
        last_bytes - warm_bytes <= BOUND_BYTES,
    )
    return 0 if holds else 1


if __name__ == "__main__":
    sys.exit(main())
