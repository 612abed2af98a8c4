"""Does the rule of mixed precision choose the right experts? Quality and bytes, rule by rule.

    python -m haversack.tools.training.dropping CORPUS [--csv FILE]

The built-in model computes held-out text in torch. Each layer has slots of its own for a quarter of
its experts, with the engine's books. An expert that is missing is read HIGH, read LOW or skipped:
by the rule (`cache/precision.py`), by its rank in the router's choice, or at random. `wanted` are
the shares of all chosen experts that may be LOW and skipped where they are missing, `used` those
that were. `bytes` are in percent of what exact reads; `divergence` is the mean from exact, in nats.
"Renormalised": the weights of a token that skips experts are scaled so that those it uses weigh as
much as all it chose; otherwise, as in the engine, they stay as they are.
The low copies are those that `haversack prepare` makes without a calibration.
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional

from haversack.cache.levels import LevelledSlots, PoolBytes
from haversack.cache.precision import HIGH, LOW, SKIP, Levels, Weights, fit, levels
from haversack.cache.slots import NOWHERE
from haversack.devices.conversion import to_floats
from haversack.edge.fidelity import BALANCED, FAST, Fidelity
from haversack.edge.loading import builtin_model
from haversack.quant.fidelity import FidelityMeter, FidelityReport
from haversack.quant.gguf import ModelGeometry, read_geometry
from haversack.quant.requantize import AUTO, Requantizer
from haversack.tools.command_line import give_table, tool
from haversack.tools.training.batches import token_row, windows_of
from haversack.tools.training.corpus import held_out_sources, story_sources
from haversack.tools.training.decoder import Block, Decoder
from haversack.tools.training.export import load_gguf

CACHE_SHARE = 0.25
HIGH_BYTES, LOW_BYTES = 100, 53  # of Q8_0 and Q4_K, in percent
Rule = Callable[[Weights], Levels]


def by_score(sample: Weights, low: float, skip: float) -> Rule:
    """The engine's rule, fitted to these shares on a `sample` of weights."""
    thresholds = fit(sample, low, skip)
    return lambda weights: levels(weights, thresholds)


def by_rank(skip: float) -> Rule:
    """Skips the last ranks, whatever they weigh."""

    def rule(weights: Weights) -> Levels:
        ranks = np.argsort(np.argsort(-weights, axis=1, kind="stable"), axis=1)
        return np.where(ranks >= round((1 - skip) * weights.shape[1]), SKIP, HIGH).astype(np.int32)

    return rule


def at_random(skip: float) -> Rule:
    """Skips as many, whichever they are."""
    rng = np.random.default_rng(0)
    return lambda weights: np.where(rng.random(weights.shape) < skip, SKIP, HIGH).astype(np.int32)


class SubstitutedExperts:
    """Computes the experts of one layer as the engine does with slots of two precisions."""

    def __init__(self, block: Block, low: Sequence[Tensor], rule: Rule, renormalised: bool) -> None:
        self._block, self._rule, self._renormalised = block, rule, renormalised
        self._high = (block.ffn_gate_exps, block.ffn_up_exps, block.ffn_down_exps)
        self._low = low
        shape = block.shape
        self._used, self._num_experts = shape.num_experts_per_tok, shape.num_experts
        num_bytes = int(CACHE_SHARE * self._num_experts) * HIGH_BYTES
        least = (self._used, self._used)
        pool = PoolBytes(num_bytes, (HIGH_BYTES, LOW_BYTES), least)
        self._slots = LevelledSlots(range(1), self._num_experts, pool)
        self.read_bytes, self.uses = 0, np.zeros(3, np.int64)

    def __call__(self, rows: Tensor, _: Any) -> tuple[Tensor, Tensor]:
        """Return what the layer adds to `rows` (N, C), one token after the other."""
        scores = functional.linear(rows, self._block.ffn_gate_inp)
        weights, chosen = scores.softmax(dim=-1).topk(self._used, dim=-1)  # (N, K)
        wanted = self._rule(weights.numpy())
        steps = zip(chosen.numpy().astype(np.int32), wanted, strict=True)
        used = torch.from_numpy(np.stack([self._lease(*step) for step in steps]))
        products = torch.zeros(*chosen.shape, rows.shape[1])
        for level, matrices in ((HIGH, self._high), (LOW, self._low)):
            for expert in range(self._num_experts):
                row, place = ((chosen == expert) & (used == level)).nonzero(as_tuple=True)
                products[row, place] = _network(rows[row], expert, matrices)
        self.uses += np.bincount(used.ravel(), minlength=3)
        counted = weights * (used != SKIP) if self._renormalised else weights
        weights = weights / counted.sum(dim=-1, keepdim=True)
        return (products * weights.unsqueeze(-1)).sum(dim=1), torch.zeros(())

    def _lease(self, experts: npt.NDArray[np.int32], wanted: Levels) -> Levels:
        """Return the levels at which a token uses `experts`; read what is missing."""
        slots = self._slots
        found, places = slots.find(0, experts, wanted)
        there = places != NOWHERE
        held = [(level, places[there & (found == level)]) for level in (HIGH, LOW)]
        for level, some in held:
            slots.tables[level].pin(some)
        slots.use(0, experts, wanted)
        used = np.where(there, found, wanted)
        used[~there] = slots.read_levels(wanted[~there])
        for level in (HIGH, LOW):
            missing = experts[~there & (used == level)]
            self.read_bytes += len(missing) * slots.pool.slot[level]
            claimed = slots.claim(0, missing, level)
            slots.fill(level, claimed)
            slots.tables[level].unpin(claimed)
        for level, some in held:
            slots.tables[level].unpin(some)
        slots.balance()
        return used.astype(np.int32)


def _network(rows: Tensor, expert: int, matrices: Sequence[Tensor]) -> Tensor:
    gate, up, down = (matrix[expert] for matrix in matrices)
    gated = functional.silu(functional.linear(rows, gate)) * functional.linear(rows, up)
    return functional.linear(gated, down)


def low_matrices(geometry: ModelGeometry) -> list[list[Tensor]]:
    """Return the matrices (E, rows, columns) of all low copies, by layer."""
    maker, found = Requantizer(geometry, AUTO, None), list[list[Tensor]]()
    types = maker.layout().matrices[0]
    for idx, layer in enumerate(geometry.layers):
        made = [maker.slices(idx, expert)[0] for expert in range(layer.num_experts)]
        layer_of_floats: list[Tensor] = []
        for number, matrix in enumerate(layer.matrices):
            floats = [to_floats(blocks[number], types[idx][number].type_id) for blocks in made]
            shape = matrix.num_experts, matrix.num_rows, matrix.row_elements
            layer_of_floats.append(torch.from_numpy(np.stack(floats).reshape(shape)))
        found.append(layer_of_floats)
    return found


# -------------------------------------------------------------------- program
class Comparison:
    """The built-in model on held-out `windows` (W, T + 1), with the rules put into its layers."""

    def __init__(self, model: Decoder, windows: npt.NDArray[np.int64]) -> None:
        self.model, self.windows = model, windows
        self.low = low_matrices(read_geometry(builtin_model()))
        self.exact, self.exact_bytes, _ = self._run(by_rank(0), self.windows)

    @torch.no_grad()
    def _run(
        self, rule: Rule, windows: npt.NDArray[np.int64], renormalised: bool = False
    ) -> tuple[list[Tensor], int, npt.NDArray[np.int64]]:
        """Return the logits of each window, the bytes read, and the uses by level."""
        layers = list[SubstitutedExperts]()
        for block, low in zip(self.model.blk, self.low, strict=True):
            assert isinstance(block, Block)
            layers.append(SubstitutedExperts(block, low, rule, renormalised))
            object.__setattr__(block, "_experts", layers[-1])
        rows = [self.model(torch.from_numpy(window[None, :-1]))[0] for window in windows]
        uses: npt.NDArray[np.int64] = np.sum([layer.uses for layer in layers], axis=0)
        return rows, sum(layer.read_bytes for layer in layers), uses

    def weights(self, window: npt.NDArray[np.int64]) -> Weights:
        """Return the routers' weights (N, K) on another window (T + 1,), to fit the rule to."""
        found: list[Weights] = []

        def keep(weights: Weights) -> Levels:
            found.append(weights)
            return np.zeros(weights.shape, np.int32)

        self._run(keep, window[None])
        return np.concatenate(found)

    def row(
        self, name: str, rule: Rule, low: float, skip: float, *, renormalised: bool = False
    ) -> dict[str, str]:
        """Return a row of the table."""
        rows, read_bytes, uses = self._run(rule, self.windows, renormalised)
        found = self._metered(rows)
        return {
            "rule": f"{name}, renormalised" if renormalised else name,
            "wanted low": f"{low:.0%}",
            "wanted skipped": f"{skip:.0%}",
            "used low": f"{uses[LOW] / uses.sum():.1%}",
            "used skipped": f"{uses[SKIP] / uses.sum():.1%}",
            "bytes": f"{100 * read_bytes / self.exact_bytes:.1f}",
            "divergence": f"{found.kl_mean:.4f}",
            "top-1": f"{found.top1_agreement:.1%}",
            "perplexity": f"{found.perplexity_rise:+.2%}",
        }

    def _metered(self, rows: Sequence[Tensor]) -> FidelityReport:
        meter = FidelityMeter()
        for window, exact, found in zip(self.windows, self.exact, rows, strict=True):
            for token, one, other in zip(window[1:].tolist(), exact, found, strict=True):
                meter.add(one.numpy(), other.numpy(), token)
        return meter.report()


@tool
def main(arguments: Sequence[str] | None) -> int:
    """Compare the rules on the corpus that the command line names; the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("corpus", type=Path, help="the folder of the corpus files")
    parser.add_argument("--tokens", type=int, default=1024, help="of held-out text, at most")
    parser.add_argument("--csv", type=Path, help="write the table there as well")
    given = parser.parse_args(arguments)
    model, vocabulary = load_gguf(builtin_model())
    length = model.shape.context_tokens
    held_out = token_row(held_out_sources(given.corpus)[:2], vocabulary, 0)  # books and tales
    comparison = Comparison(model, windows_of(held_out, length, given.tokens))
    stories = token_row(story_sources(given.corpus), vocabulary, 0)
    sample = comparison.weights(windows_of(stories, length, length)[0])
    table = [comparison.row("low alone", by_score(sample, 0.55, 0), 0.55, 0)]
    for skip in (0.25, 0.5):
        rule = by_score(sample, 0, skip)
        for renormalised in (False, True):
            table.append(comparison.row("skip alone", rule, 0, skip, renormalised=renormalised))
        table.append(comparison.row("by rank", by_rank(skip), 0, skip))
        table.append(comparison.row("at random", at_random(skip), 0, skip))
    for mode in (BALANCED, FAST):
        asked = Fidelity(mode).shares
        rule = by_score(sample, asked.low, asked.skip)
        for renormalised in (False, True):
            shares = asked.low, asked.skip
            table.append(comparison.row(f"both, {mode}", rule, *shares, renormalised=renormalised))
    give_table(table, given.csv)
    return 0


if __name__ == "__main__":
    sys.exit(main())
