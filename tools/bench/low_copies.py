"""Which low copies are the best for their bytes? All sources, for one model.

    python -m haversack.tools.bench.low_copies [MODEL] [--text FILE] [--low-from FILE] [--csv FILE]

For each source: the bytes on disk beside the model, the bytes of a low use and of an upgrade of an
expert in memory to full precision, each as a share of the expert's bytes; the error of the products
with some experts' matrices, on random activations and on those of the model itself, as a share of
the product's length; the seconds to make all copies on one thread, and how fast joining gives back
the originals. Half of the text weights the columns of some copies, the other half is measured. Of a
model without a tokenizer, or without --text, random tokens are taken.
"""

import argparse
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt

from haversack import edge
from haversack.devices.conversion import Floats, to_floats
from haversack.devices.errors import ModelFileError
from haversack.edge.bench import random_tokens
from haversack.quant.blocks import block_type
from haversack.quant.experts import Blocks, expert_rows
from haversack.quant.gguf import ExpertMatrix, ModelGeometry, read_geometry
from haversack.quant.importance import Importance
from haversack.quant.lowbit import low_from_gguf
from haversack.quant.nested import Splitter, join_blocks, nested_type
from haversack.quant.requantize import Requantizer
from haversack.tools.command_line import give_table, tool

NUM_TOKENS, NUM_RANDOM, MOST_ROWS, NUM_JOINS = 1024, 32, 64, 5
TYPES = ("iq2_xxs", "q2_k", "iq3_xxs", "q3_k", "q4_k")
Sample = tuple[int, int]  # a layer by its index, and an expert
Slices = Callable[[int, int], list[list[Blocks]]]
Copy = tuple[Floats, int]  # an expert's matrix as the low copy has it, and its bytes


@dataclass(frozen=True)
class LowResult:
    """One source. Shares are of the bytes of the experts in the model, errors of a product."""

    source: str
    disk_share: float
    use_share: float
    upgrade_share: float
    random_error: float
    real_error: float
    make_s: float
    join_gb_s: float

    def row(self) -> dict[str, str]:
        """Return a row of the table."""
        return {
            "source": self.source,
            "disk": f"{self.disk_share:.3f}",
            "use": f"{self.use_share:.3f}",
            "upgrade": f"{self.upgrade_share:.3f}",
            "error, random": f"{self.random_error:.4f}",
            "error, real": f"{self.real_error:.4f}",
            "make s": f"{self.make_s:.1f}",
            "join GB/s": f"{self.join_gb_s:.1f}",
        }


class Activations:
    """What the model multiplies its experts' matrices with: at most `MOST_ROWS` rows of each for
    measuring, and the mean squares of all rows of the first half of the tokens."""

    def __init__(self, geometry: ModelGeometry, text: Path | None) -> None:
        self._rows = defaultdict[tuple[str, int], list[Floats]](list)
        self._sums: dict[str, Floats] = {}
        self._counts = {m.name: m.num_experts for layer in geometry.layers for m in layer.matrices}
        with edge.load(geometry.path, ctx=512) as model:
            tokens = self._tokens(model, text)
            for number, start in enumerate(range(0, len(tokens), 512)):
                add = self._weigh if number % 2 == 0 else self._keep
                watch = model.watch_activations(add)
                piece = tokens[start : start + 512]
                model.logits(piece, len(piece))
                if watch.error is not None:
                    raise watch.error

    @staticmethod
    def _tokens(model: edge.Model, text: Path | None) -> list[int]:
        if text is None:
            return random_tokens(model.vocab_size, NUM_TOKENS, seed=0)
        return model.tokenize(text.read_text(encoding="utf-8"))[:NUM_TOKENS]

    def _weigh(self, name: str, ids: npt.NDArray[np.int32], x: Floats) -> None:
        shape = self._counts[name], x.shape[1]
        sums = self._sums.setdefault(name, np.zeros(shape, np.float32))
        for place in range(ids.shape[1]):
            np.add.at(sums, ids[:, place], np.square(x))

    def _keep(self, name: str, ids: npt.NDArray[np.int32], x: Floats) -> None:
        for row, experts in zip(x, ids, strict=True):
            for expert in experts.tolist():
                if len(self._rows[name, expert]) < MOST_ROWS:
                    self._rows[name, expert].append(row.copy())

    def of(self, matrix: ExpertMatrix, expert: int) -> Floats | None:
        """Return rows that meet this expert's matrix, None if there were none."""
        rows = self._rows.get((matrix.name, expert))
        return np.stack(rows) if rows else None

    def importance(self) -> Importance:
        """Return the weights of columns."""
        return Importance(self._sums, "a text")


class Comparison:
    """Measures sources on two experts of each layer."""

    def __init__(self, geometry: ModelGeometry, activations: Activations) -> None:
        self._geometry, self._activations = geometry, activations
        layers = enumerate(geometry.layers)
        self._samples = [(idx, e) for idx, layer in layers for e in (0, layer.num_experts // 2)]

    def gguf(self, path: Path) -> LowResult:
        """Measure a second GGUF of the model."""
        low, geometry = low_from_gguf(self._geometry, path), self._geometry
        other = read_geometry(path)
        copies = dict[Sample, list[Copy]]()
        for idx, expert in self._samples:
            own, theirs = geometry.layers[idx].matrices, other.layers[idx].matrices
            copies[idx, expert] = [
                (
                    expert_rows(other, small, expert)
                    if copy.part >= len(geometry.paths)
                    else expert_rows(geometry, matrix, expert),
                    copy.num_bytes,
                )
                for matrix, small, copy in zip(own, theirs, low.copies[idx], strict=True)
            ]
        disk_share = sum(part.stat().st_size for part in low.paths) / geometry.expert_bytes
        return self._result(f"gguf {path.name}", copies, disk_share)

    def made(self, source: str, maker: Requantizer | Splitter) -> LowResult:
        """Measure copies that `haversack prepare` makes."""
        layout, geometry = maker.layout(), self._geometry
        began_s = time.perf_counter()
        slices = {sample: maker.slices(*sample) for sample in self._samples}
        num_experts = sum(layer.num_experts for layer in geometry.layers)
        make_s = (time.perf_counter() - began_s) / len(slices) * num_experts
        copies = dict[Sample, list[Copy]]()
        for (idx, expert), found in slices.items():
            blocks, copies[idx, expert] = iter(found[0]), []
            for matrix, kind in zip(
                geometry.layers[idx].matrices, layout.matrices[0][idx], strict=True
            ):
                exact = expert_rows(geometry, matrix, expert)
                rows = to_floats(next(blocks), kind.type_id) if kind.num_bytes else exact
                num_bytes = kind.num_bytes or matrix.expert_bytes
                copies[idx, expert].append((rows.reshape(exact.shape), num_bytes))
        disk_share = layout.num_bytes / geometry.expert_bytes
        if len(layout.matrices) == 1:
            return self._result(source, copies, disk_share, make_s=make_s)
        rest_bytes = sum(stored.num_bytes for layer in layout.matrices[1] for stored in layer)
        all_bytes = sum(layer.expert_bytes for layer in geometry.layers)
        joined = self._join_gb_s(slices)
        return self._result(source, copies, disk_share, rest_bytes / all_bytes, make_s, joined)

    def _join_gb_s(self, slices: dict[Sample, list[list[Blocks]]]) -> float:
        num_bytes, took_s = 0, 0.0
        for (idx, _), (bases, rests) in slices.items():
            matrices = [m for m in self._geometry.layers[idx].matrices if nested_type(m.type_id)]
            for matrix, base, rest in zip(matrices, bases, rests, strict=True):
                kind = nested_type(matrix.type_id)
                assert kind is not None, "only these are split"
                blocks = base.reshape(-1, block_type(kind.base_id).block_bytes)
                rest = rest.reshape(-1, kind.rest_bytes)
                times_s = list[float]()
                for _ in range(NUM_JOINS):
                    began_s = time.perf_counter()
                    join_blocks(blocks, rest, matrix.type_id)
                    times_s.append(time.perf_counter() - began_s)
                num_bytes, took_s = num_bytes + matrix.expert_bytes, took_s + min(times_s)
        return num_bytes / took_s / 1e9

    def _result(
        self,
        source: str,
        copies: dict[Sample, list[Copy]],
        disk_share: float,
        upgrade_share: float = 1.0,
        make_s: float = 0.0,
        join_gb_s: float = 0.0,
    ) -> LowResult:
        errors = np.array(list(self._errors(copies)))
        used = sum(num_bytes for found in copies.values() for _, num_bytes in found)
        whole = sum(self._geometry.layers[idx].expert_bytes for idx, _ in copies)
        random_error, real_error = (float(np.nanmean(column)) for column in errors.T)
        return LowResult(
            source,
            disk_share,
            used / whole,
            upgrade_share,
            random_error,
            real_error,
            make_s,
            join_gb_s,
        )

    def _errors(self, copies: dict[Sample, list[Copy]]) -> Iterator[tuple[float, float]]:
        """Yield the errors of each matrix on random and on real activations."""
        rng = np.random.default_rng(0)
        for (idx, expert), found in copies.items():
            for matrix, (low, _) in zip(self._geometry.layers[idx].matrices, found, strict=True):
                exact = expert_rows(self._geometry, matrix, expert)
                drawn = rng.standard_normal((NUM_RANDOM, matrix.row_elements), np.float32)
                real = self._activations.of(matrix, expert)
                known = float("nan") if real is None else _error(exact, low, real)
                yield _error(exact, low, drawn), known


def _error(exact: Floats, low: Floats, rows: Floats) -> float:
    product = rows @ exact.T
    return float(np.linalg.norm(rows @ low.T - product) / np.linalg.norm(product))


def compare(model: Path, text: Path | None, low_from: Path | None) -> Iterator[LowResult]:
    """Yield what each source gives for a model; those that it cannot have are left out."""
    geometry = read_geometry(model)
    activations = Activations(geometry, text)
    comparison = Comparison(geometry, activations)
    if low_from is not None:
        yield comparison.gguf(low_from)
    makers: list[tuple[str, Callable[[], Requantizer | Splitter]]] = [
        ("nested", partial(Splitter, geometry))
    ]
    for name in TYPES:
        for weights in (None, activations.importance()):
            label = name if weights is None else f"{name}, weighted"
            makers.append((label, partial(Requantizer, geometry, name, weights)))
    for label, make in makers:
        try:
            maker = make()
        except ModelFileError as error:
            print(f"{label}: left out: {error}", file=sys.stderr)
            continue
        yield comparison.made(label, maker)


@tool
def main(arguments: Sequence[str] | None) -> int:
    """Compare the sources of low copies of one model; the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", type=Path, nargs="?", default=edge.builtin_model())
    parser.add_argument("--text", type=Path, help="a text in UTF-8")
    parser.add_argument("--low-from", type=Path, help="a second, smaller GGUF of the model")
    parser.add_argument("--csv", type=Path, help="write the table there as well")
    given = parser.parse_args(arguments)
    rows = [found.row() for found in compare(given.model, given.text, given.low_from)]
    give_table(rows, given.csv)
    return 0


if __name__ == "__main__":
    sys.exit(main())
