"""What happens while one token is decoded: a timeline of routers, computing and reads by layer.

    python -m haversack.tools.bench.timeline MODEL OUT.csv --ram 6GiB [--rate 500MB]
    python -m haversack.tools.bench.plot timeline OUT.csv timeline.png

A row of OUT.csv is an interval in one layer's lane, in seconds since the token began:

    router   the layer's router has chosen
    compute  llama.cpp computes, from this choice to the next layer's: products and attention
    late     the engine multiplies experts that were missing as they come, and waits for them
    demand   a read of one matrix of an expert begun after the layer had chosen
    ahead    such a read begun before: a guess

Nothing in the engine is changed: the files it reads and the hook it gives llama.cpp are wrapped,
and reading ahead stays on. Of the tokens recorded, the one of the median time among those that read
ahead is shown, of all of them if none did.
"""

import argparse
import csv
import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import astuple, dataclass, field, fields
from pathlib import Path

from haversack import edge
from haversack.devices.ggml import GraphNode, is_choice
from haversack.devices.llama import Hook, LlamaContext
from haversack.devices.storage import Buffer, DirectFile
from haversack.devices.units import parse_bytes
from haversack.edge.loading import default_cache_dir
from haversack.edge.planner import STREAMED, Plan, streamed
from haversack.offload.engine import Engine, LoadHooks, open_streamed
from haversack.offload.streamer import OpenFile
from haversack.quant.gguf import ModelGeometry
from haversack.quant.trunk import ensure_trunk
from haversack.tools.bench.steady_drive import SteadyDrive, warm
from haversack.tools.command_line import positive, tool

ROUTER, COMPUTE, LATE, DEMAND, AHEAD = "router", "compute", "late", "demand", "ahead"


@dataclass(frozen=True)
class Interval:
    """Something that took from `begin_s` to `end_s` and belongs to `layer`."""

    layer: int
    kind: str
    begin_s: float
    end_s: float


@dataclass
class TokenNotes:
    """What was seen of one token, in moments of `time.perf_counter`. A read is noted as (the
    place in its file of the last byte that is needed, the file, when it began, when it ended)."""

    begin_s: float
    end_s: float = 0.0
    routers: list[tuple[int, float]] = field(default_factory=list)
    products: list[tuple[float, float]] = field(default_factory=list)
    reads: list[tuple[int, Path, float, float]] = field(default_factory=list)


class NotedFile(DirectFile):
    """A file that notes each of its reads once it is done."""

    def __init__(self, inner: DirectFile, note: Callable[[int, Path, float, float], None]) -> None:
        super().__init__(inner.path, direct=False)
        self.direct, self._inner, self._note = inner.direct, inner, note

    def read_into(self, buffer: Buffer, offset: int, need_bytes: int) -> None:
        """As the file within."""
        begin_s = time.perf_counter()
        self._inner.read_into(buffer, offset, need_bytes)
        self._note(offset + need_bytes - 1, self.path, begin_s, time.perf_counter())

    def close(self) -> None:
        """Close the file within as well."""
        self._inner.close()
        super().close()


class Observer:
    """Notes what the drive and llama.cpp's hook see of each token, and lets both do their work."""

    callback = None

    def __init__(self, open_file: OpenFile) -> None:
        self._open_file = open_file
        self.tokens = [TokenNotes(time.perf_counter())]  # loading is the first
        self.hook: Hook

    def open(self, path: Path) -> NotedFile:
        """The file at `path`, noted."""
        # readers append to the token under way when the read ends: lists may be shared by threads
        return NotedFile(self._open_file(path), lambda *read: self.tokens[-1].reads.append(read))

    def begin_token(self) -> None:
        """A token is decoded from now on."""
        now_s = time.perf_counter()
        self.tokens[-1].end_s = now_s
        self.tokens.append(TokenNotes(now_s))

    def on_node(self, node: int, ask: bool, _: object) -> bool:
        """As `hook`. What it is shown after computing is a router's choice or a product it does."""
        if ask:
            return self.hook.on_node(node, ask, _)
        begin_s = time.perf_counter()
        answer = self.hook.on_node(node, ask, _)
        name = GraphNode(node).name
        if is_choice(node):
            self.tokens[-1].routers.append((int(name.rpartition("-")[2]), begin_s))
        else:
            self.tokens[-1].products.append((begin_s, time.perf_counter()))
        return answer

    def end_graph(self, computed: bool) -> BaseException | None:
        """As `hook`."""
        return self.hook.end_graph(computed)


@contextmanager
def observed_engine(planned: Plan, observer: Observer, cache_dir: Path) -> Iterator[Engine]:
    """An engine for `planned` (streamed) that `observer` sees. Raises as `edge.load`."""
    trunk = ensure_trunk(planned.geometry, cache_dir)
    hooks = LoadHooks(open_file=observer.open, native=False)  # whose hook can be wrapped
    with closing(
        open_streamed(planned.geometry, trunk, planned.shape, lambda: planned.pools, hooks)
    ) as engine:
        assert engine.seam is not None, "a streamed engine has a seam"
        engine.context.close()
        observer.hook = engine.seam
        engine.context = LlamaContext(engine.model, planned.shape, observer, engine.stop)
        engine.on_close(engine.context.close)
        yield engine


def observe(
    planned: Plan, open_file: OpenFile, prompt: str, tokens: int, cache_dir: Path
) -> list[TokenNotes]:
    """Notes on the last `tokens` tokens of twice as many decoded greedily after `prompt`.

    A model without a vocabulary gets a few ids instead. Raises as `edge.load` and `Model.logits`.
    """
    observer = Observer(open_file)
    with observed_engine(planned, observer, cache_dir) as engine:
        context, vocabulary = engine.context, engine.model.vocabulary
        context.decode(vocabulary.tokenize(prompt) if vocabulary.has_text else range(1, 9))
        for _ in range(2 * tokens):
            chosen = int(context.borrow_logits().argmax())
            observer.begin_token()
            context.decode([chosen])
        observer.begin_token()
    return observer.tokens[-tokens - 1 : -1]


def timeline(notes: TokenNotes, geometry: ModelGeometry) -> list[Interval]:
    """The intervals of one token, in seconds since it began."""
    chose_s = dict(notes.routers)
    intervals = [Interval(layer, ROUTER, at_s, at_s) for layer, at_s in notes.routers]
    # what comes before the first choice is the first layer's attention
    begins = [notes.begin_s, *(at_s for _, at_s in notes.routers[1:])]
    for (layer, _), begin_s, end_s in zip(
        notes.routers, begins, [*begins[1:], notes.end_s], strict=True
    ):
        products = [p for p in notes.products if begin_s <= p[0] < end_s]
        intervals += [Interval(layer, LATE, *product) for product in products]
        intervals += [Interval(layer, COMPUTE, *gap) for gap in _gaps(begin_s, end_s, products)]
    for last_byte, path, begin_s, end_s in notes.reads:
        layer = layer_at(geometry, path, last_byte)
        kind = AHEAD if begin_s < chose_s[layer] else DEMAND
        # one withdrawn may have begun in the token before
        intervals.append(Interval(layer, kind, max(begin_s, notes.begin_s), end_s))
    start = notes.begin_s
    return [Interval(i.layer, i.kind, i.begin_s - start, i.end_s - start) for i in intervals]


def _gaps(
    begin_s: float, end_s: float, taken: Sequence[tuple[float, float]]
) -> Iterator[tuple[float, float]]:
    for taken_begin_s, taken_end_s in taken:
        yield begin_s, taken_begin_s
        begin_s = taken_end_s
    yield begin_s, end_s


def layer_at(geometry: ModelGeometry, path: Path, place: int) -> int:
    """The layer whose experts hold the byte at `place` of the model's file `path`."""
    part = geometry.paths.index(path)
    for layer in geometry.layers:
        for matrix in layer.matrices:
            experts_bytes = matrix.num_experts * matrix.expert_bytes
            if matrix.part == part and 0 <= place - matrix.offset < experts_bytes:
                return layer.layer
    raise ValueError(f"byte {place} of {path} is no expert's")


def typical(tokens: Sequence[list[Interval]]) -> list[Interval]:
    """The token of the median time among those that read ahead, of all if none did."""
    guessed = [token for token in tokens if any(i.kind == AHEAD for i in token)]
    by_time = sorted(guessed or tokens, key=lambda token: max(i.end_s for i in token))
    return by_time[len(by_time) // 2]


def write_timeline(intervals: Sequence[Interval], path: Path) -> None:
    """A CSV file with a row for each interval."""
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow([f.name for f in fields(Interval)])
        writer.writerows(astuple(i) for i in sorted(intervals, key=lambda i: i.begin_s))


@tool
def main(arguments: Sequence[str] | None) -> int:
    """Record what the command line asks for; the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("-p", "--prompt", default="Once upon a time")
    parser.add_argument("-n", "--tokens", type=positive, default=32, help="to choose one from")
    parser.add_argument("--ram", help="the memory to run in; what is free by default")
    parser.add_argument("--rate", help="of a steady drive, 500MB say; the real one by default")
    given = parser.parse_args(arguments)
    planned = edge.plan(given.model, ram=given.ram, ctx=512)
    if planned.mode != STREAMED:
        planned = streamed(planned)
    open_file: OpenFile = DirectFile
    if given.rate:
        open_file = SteadyDrive(parse_bytes(given.rate)).open
        for path in planned.geometry.paths:
            warm(path)
    notes = observe(planned, open_file, given.prompt, given.tokens, default_cache_dir())
    chosen = typical([timeline(token, planned.geometry) for token in notes])
    write_timeline(chosen, given.out)
    counts = {kind: sum(i.kind == kind for i in chosen) for kind in (DEMAND, AHEAD)}
    print(json.dumps({"token_s": max(i.end_s for i in chosen), **counts}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
