"""`prepare()`: makes low copies of a model's experts and keeps them in the cache folder.

It may be interrupted at any moment, also by a signal that cannot be caught: what was finished stays
and is not made again.
"""

import errno
import hashlib
import shutil
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from haversack.devices.conversion import Floats
from haversack.devices.cores import usable_cores
from haversack.devices.errors import HaversackError, ModelFileError, PromptError, StorageError
from haversack.devices.units import format_bytes
from haversack.edge.cache_dir import default_cache_dir
from haversack.edge.loading import LoadOptions, LoadProgress, load
from haversack.edge.model import Model
from haversack.edge.model_plan import Plan
from haversack.edge.planner import plan
from haversack.offload.activations import ActivationWatch
from haversack.quant.experts import Blocks
from haversack.quant.gguf import ModelGeometry, read_geometry
from haversack.quant.importance import ActivationSums, Importance
from haversack.quant.nested import NESTED, Splitter
from haversack.quant.records import Record, RecordFile, importance_path, low_path, remove_older
from haversack.quant.requantize import AUTO, Requantizer
from haversack.quant.trunk import disk_bytes_of, model_name

Maker = Requantizer | Splitter

_PIECE_TOKENS = 512  # of a text, computed together, each piece in an empty context
_LEAST_TOKENS = 32  # of a last piece; fewer say little of a text
_SAVE_S = 20.0  # of collecting importance may be lost
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@dataclass(frozen=True)
class PrepareOptions:
    """The rarer settings of `prepare`: the memory that the model may take while a text runs through
    it, threads, the cache folder, and what is told of the progress: the step and the share done."""

    ram: str | int | None = None
    threads: int | None = None
    cache_dir: str | Path | None = None
    progress: LoadProgress | None = None


@dataclass(frozen=True)
class Prepared:
    """What `prepare` did: the file of low copies, what they were made from, its bytes on disk and
    those of the model's experts, how many experts have a copy, how many copies were made now, how
    many earlier ones were found damaged and made anew, and notes on matrices that are not of the
    wanted type."""

    path: Path
    source: str
    disk_bytes: int
    expert_bytes: int
    num_experts: int
    num_made: int
    num_damaged: int
    notes: Sequence[str]


def prepare(
    model: str | Path,
    low: str = AUTO,
    imatrix: str | Path | None = None,
    calibrate: str | Path | None = None,
    options: PrepareOptions | None = None,
) -> Prepared:
    """Make low copies of the experts of the GGUF at `model`, of the block type called `low`, and
    check those that are there already. "auto" chooses the type (see `Requantizer`). With "nested" a
    copy has the upper bits of the
    original, and its lower bits are kept beside it (see `quant.nested`).

    The columns of the experts are weighted by the imatrix file `imatrix`, or by what the model
    computes on the text file `calibrate`, or not at all. Copies of another type, or weighted in
    another way, are replaced. Raises ModelFileError, StorageError, PromptError, BudgetError,
    KeyboardInterrupt.
    """
    options = options or PrepareOptions()
    geometry = read_geometry(Path(model))
    if not geometry.layers:
        raise ModelFileError(f"{model} has no routed experts, so there is nothing to prepare")
    if imatrix is not None and calibrate is not None:
        raise PromptError("--imatrix and --calibrate are given: give one of them")
    if low == NESTED and (imatrix or calibrate):
        raise PromptError("nested copies are not weighted: leave out --imatrix and --calibrate")
    path = low_path(geometry, Path(options.cache_dir or default_cache_dir()))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        remove_older(path)
        if low == NESTED:
            return _made(geometry, path, Splitter(geometry), options)
        importance = _importance(geometry, path, imatrix, calibrate, options)
        return _made(geometry, path, Requantizer(geometry, low, importance), options)
    except OSError as error:
        if isinstance(error, HaversackError):
            raise
        room = "make room there or " if error.errno in _NO_ROOM else ""
        raise StorageError(
            f"cannot write low copies to {path.parent}: {error.strerror or error}; {room}choose"
            " another folder with --cache-dir; what was finished stays"
        ) from error


# --------------------------------------------------------------------- records
def _made(geometry: ModelGeometry, path: Path, maker: Maker, options: PrepareOptions) -> Prepared:
    _refuse_small_disk(path, maker.layout().num_bytes)
    report = options.progress or _tell_nothing
    with RecordFile(path, maker.layout()) as file:
        num_damaged = _num_damaged(file, report)
        wanted = dict.fromkeys((record.layer_idx, record.expert) for record in file.missing())
        num_threads = options.threads or usable_cores()
        report("making low copies", 0.0 if wanted else 1.0)
        for num_made, _ in enumerate(_each_made(file, maker, list(wanted), num_threads), 1):
            report("making low copies", num_made / len(wanted))
        file.sync()
    if path != low_path(geometry, path.parent):
        raise StorageError(f"{geometry.path} was changed meanwhile: prepare it again")
    return Prepared(
        path=path,
        source=maker.layout().source,
        disk_bytes=disk_bytes_of(path),
        expert_bytes=geometry.expert_bytes,
        num_experts=sum(layer.num_experts for layer in geometry.layers),
        num_made=len(wanted),
        num_damaged=num_damaged,
        notes=maker.notes,
    )


def _refuse_small_disk(path: Path, num_bytes: int) -> None:
    there_bytes = disk_bytes_of(path) if path.exists() else 0
    free_bytes = shutil.disk_usage(path.parent).free
    if free_bytes < num_bytes - there_bytes:
        raise StorageError(
            f"low copies need {format_bytes(num_bytes - there_bytes)}, {path.parent} has"
            f" {format_bytes(free_bytes)} free: make room there, choose another folder with"
            " --cache-dir or a smaller type with --low"
        )


def _num_damaged(file: RecordFile, report: LoadProgress) -> int:
    """Check the records that are there. Return how many were damaged; they are missing now."""
    num_records, damaged = max(1, sum(1 for _ in file.layout.records())), set[Record]()
    for number, (record, whole) in enumerate(file.drop_damaged(), 1):
        if not whole:
            damaged.add(record)
        report("checking earlier low copies", number / num_records)
    return len(damaged)


def _each_made(
    file: RecordFile, maker: Maker, wanted: list[tuple[int, int]], num_threads: int
) -> Iterator[None]:
    """Make the records of these experts, (layer, expert) each; yield after each expert."""

    def make(layer_idx: int, expert: int) -> None:
        slices: list[list[Blocks]] = maker.slices(layer_idx, expert)
        for slice_idx, matrices in enumerate(slices):
            file.write(Record(slice_idx, layer_idx, expert), matrices)

    pool, running = ThreadPoolExecutor(num_threads), deque[Future[None]]()
    try:
        for layer_idx, expert in wanted:
            running.append(pool.submit(make, layer_idx, expert))
            if len(running) > num_threads:
                running.popleft().result()
                yield
        while running:
            running.popleft().result()
            yield
    finally:  # the file may not be closed before the last write has ended
        pool.shutdown(cancel_futures=True)


# ------------------------------------------------------------------ importance
def _importance(
    geometry: ModelGeometry,
    low: Path,
    imatrix: str | Path | None,
    calibrate: str | Path | None,
    options: PrepareOptions,
) -> Importance | None:
    if imatrix is not None:
        return Importance.read(Path(imatrix))
    if calibrate is None:
        return None
    try:
        text = Path(calibrate).read_bytes().decode()
    except OSError as error:
        raise PromptError(f"cannot read --calibrate {calibrate}: {error.strerror}") from error
    except UnicodeDecodeError:
        raise PromptError(f"--calibrate {calibrate} is not UTF-8 text: convert it") from None
    identity = hashlib.sha256(f"{model_name(geometry)} {text}".encode()).hexdigest()
    sums = ActivationSums(importance_path(low), identity)
    if not sums.is_whole:
        hooks = LoadOptions(cache_dir=low.parent, progress=options.progress, warm_start=False)
        with load(_calibration_plan(geometry, options), options=hooks) as model:
            _collect(model, text, sums, options.progress or _tell_nothing)
    return sums.importance()


def _calibration_plan(geometry: ModelGeometry, options: PrepareOptions) -> Plan:
    planned = plan(geometry.path, options.ram, _PIECE_TOKENS, options.threads, batch=_PIECE_TOKENS)
    columns = [m.num_experts * m.row_elements for layer in geometry.layers for m in layer.matrices]
    sums_bytes = 4 * sum(columns)
    return plan(
        geometry.path,
        planned.ram_bytes - sums_bytes,
        _PIECE_TOKENS,
        options.threads,
        batch=_PIECE_TOKENS,
    )


def _tell_nothing(what: str, share: float) -> None:
    """What is told of the progress where nobody asks."""


def _collect(model: Model, text: str, sums: ActivationSums, report: LoadProgress) -> None:
    """Run the model on `text`, from where an interrupted run stopped, and add to `sums`."""
    tokens = model.tokenize(text)
    if len(tokens) < _LEAST_TOKENS:
        raise PromptError(
            f"--calibrate has {len(tokens)} tokens: give a text of some thousand, at least"
            f" {_LEAST_TOKENS}"
        )

    def tell(share_of_piece: float) -> None:
        num_done = sums.num_tokens + share_of_piece * _PIECE_TOKENS
        report("collecting importance", min(1.0, num_done / len(tokens)))

    watch = _watched(model, sums, tell)
    tell(0.0)
    saved_s = time.monotonic()
    for start in range(sums.num_tokens, len(tokens), _PIECE_TOKENS):
        piece = tokens[start : start + _PIECE_TOKENS]
        if len(piece) >= _LEAST_TOKENS:
            model.logits(piece, len(piece))
            if watch.error is not None:
                raise watch.error
        sums.num_tokens = start + len(piece)
        tell(0.0)
        if time.monotonic() - saved_s > _SAVE_S:
            sums.save()
            saved_s = time.monotonic()
    sums.is_whole = True
    sums.save()


def _watched(model: Model, sums: ActivationSums, tell: Callable[[float], None]) -> ActivationWatch:
    """Have what the experts are multiplied with added to `sums`, and `tell` the share of a piece
    that is done: on a slow drive a piece takes minutes."""
    layers = model.plan.geometry.layers
    places = {matrix.name: place for place, layer in enumerate(layers) for matrix in layer.matrices}

    def add(name: str, experts: npt.NDArray[np.int32], x: Floats) -> None:
        place = places[name]
        sums.add(name, layers[place].num_experts, experts, x)
        tell(place / len(layers))

    return model.watch_activations(add, sums.add_weights)
