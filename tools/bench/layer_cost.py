"""What does a token of a model take beside its weights? The fixed costs that forecasts add.

    python -m haversack.tools.bench.layer_cost [--rounds 300] [--tokens 4]

Decodes with models of next to no weights, of 2 and of 26 layers, and prints by number of threads
what a layer and what a token costs: the least of the rounds, which are short, so that other
programs disturb few of them. `edge.forecasting` has a layer's cost of one computer.
"""

import argparse
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from haversack import edge
from haversack.devices.cores import usable_cores
from haversack.tools.command_line import positive, tool
from haversack.tools.models.architectures import TinyShape
from haversack.tools.models.synth import write_tiny

LAYERS = (2, 26)


def shape_of(layers: int) -> TinyShape:
    """Return the sizes of a model of so many layers with next to no weights."""
    return TinyShape(layers, num_experts=4, hidden_size=128, moe_intermediate_size=32, vocab_size=8)


def token_s(path: Path, threads: int, tokens: int, rounds: int) -> float:
    """Return the least seconds of a token."""
    options = edge.LoadOptions(speculate="off", warm_start=False)
    with edge.load(path, ctx=tokens + 8, threads=threads, options=options) as model:
        times_s = list[float]()
        for _ in range(rounds):
            before = model.stats()
            model.logits([1] * (tokens + 1), 1)
            times_s.append(model.stats().since(before).decode_s / tokens)
    return min(times_s)


def layer_cost(threads: int, tokens: int, rounds: int) -> tuple[float, float]:
    """Return the seconds that a layer costs a token, and that the token costs beside its layers."""
    with tempfile.TemporaryDirectory() as folder:
        times_s = list[float]()
        for layers in LAYERS:
            path = Path(folder) / f"{layers}.gguf"
            write_tiny("qwen3moe", path, shape=shape_of(layers))
            times_s.append(token_s(path, threads, tokens, rounds))
    few, many = LAYERS
    layer_s = (times_s[1] - times_s[0]) / (many - few)
    return layer_s, times_s[0] - few * layer_s


@tool
def main(arguments: Sequence[str] | None = None) -> int:
    """Print the costs for one thread and for all cores."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=positive, default=300)
    parser.add_argument("--tokens", type=positive, default=4, help="of a round")
    given = parser.parse_args(arguments)
    for threads in sorted({1, usable_cores()}):
        layer_s, rest_s = layer_cost(threads, given.tokens, given.rounds)
        print(f"{threads} threads: {1e6 * layer_s:.1f} us a layer, {1e6 * rest_s:.1f} us a token")
    return 0


if __name__ == "__main__":
    sys.exit(main())
