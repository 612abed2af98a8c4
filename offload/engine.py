"""A loaded model that can decode: plainly in memory, or with its experts streamed."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from haversack.devices.errors import ModelFileError, StorageError
from haversack.devices.expert_buffer import ExpertBuffer
from haversack.devices.interrupts import StopFlag
from haversack.devices.llama import ContextShape, LlamaContext, LlamaModel, Progress
from haversack.devices.storage import DirectFile
from haversack.offload.executor import ExpertExecutor
from haversack.offload.native_seam import NativeSeam
from haversack.offload.pool import PoolPlan
from haversack.offload.resident_file import read_residents, save_residents
from haversack.offload.seam import Seam
from haversack.offload.store import ExpertStore
from haversack.offload.streamer import NUM_READERS, OpenFile, Streamer
from haversack.offload.trunk_check import TrunkCheck
from haversack.quant.gguf import EXPERT_PATTERN, ModelGeometry
from haversack.quant.trunk import hole_names

_log = logging.getLogger("haversack.engine")

PoolPlans = Callable[[], Sequence[PoolPlan]]


@dataclass(frozen=True)
class LoadHooks:
    """What others have to say while a model is loaded: who is told of the progress, how the files
    of its experts are opened and how many reads their drive needs at once, whether single tokens go
    through our own library too or only through Python, its reference, and whether the model starts
    from what its last run left."""

    progress: Progress | None = None
    open_file: OpenFile = DirectFile
    num_readers: int = NUM_READERS
    native: bool = True
    warm_start: bool = True


class Engine:
    """A model and its one context; with `store`, `streamer` and `seam` if experts are streamed."""

    def __init__(self) -> None:
        self.stop = StopFlag()
        self.model: LlamaModel
        self.context: LlamaContext
        self.store: ExpertStore | None = None
        self.streamer: Streamer | None = None
        self.seam: Seam | None = None
        self._closers: list[Callable[[], None]] = []

    def on_close(self, closer: Callable[[], None]) -> None:
        """Have `close` call `closer`, before those it was told of earlier."""
        self._closers.append(closer)

    def close(self) -> None:
        """Free everything, last made first; may be called twice."""
        while self._closers:
            self._closers.pop()()


def open_resident(path: Path, shape: ContextShape, progress: Progress | None = None) -> Engine:
    """The whole model in memory: llama.cpp alone, without a hook. Raises ModelFileError."""
    engine = Engine()
    try:
        engine.model = LlamaModel(path, progress=progress)
        engine.on_close(engine.model.close)
        engine.context = LlamaContext(engine.model, shape, stop=engine.stop)
        engine.on_close(engine.context.close)
    except BaseException:
        engine.close()
        raise
    return engine


def open_streamed(
    geometry: ModelGeometry,
    trunk: Path,
    shape: ContextShape,
    pool_plans: PoolPlans,
    hooks: LoadHooks | None = None,
) -> Engine:
    """The trunk in memory and the experts in slots.

    `pool_plans` is asked once the trunk is loaded, so that it can measure what is left. Raises
    DamagedTrunkError, ModelFileError, StorageError, and whatever `pool_plans` and the hooks raise.
    """
    engine = Engine()
    try:
        _open_streamed(engine, geometry, trunk, shape, pool_plans, hooks or LoadHooks())
    except BaseException:
        engine.close()
        raise
    return engine


def _open_streamed(
    engine: Engine,
    geometry: ModelGeometry,
    trunk: Path,
    shape: ContextShape,
    pool_plans: PoolPlans,
    hooks: LoadHooks,
) -> None:
    if not trunk.is_file():
        raise StorageError(f"{trunk} is gone: load the model again to have it written")
    progress = hooks.progress
    if progress is not None:
        progress = _without_holes(progress, trunk.stat().st_size / geometry.trunk_bytes)
    experts = ExpertBuffer(EXPERT_PATTERN)
    engine.on_close(experts.close)
    check = TrunkCheck(trunk, hole_names(geometry))
    engine.model = _load_trunk(trunk, experts, progress, check)
    engine.on_close(engine.model.close)
    engine.on_close(check.close)
    check.begin(engine.model)
    plans = pool_plans()
    streamer = engine.streamer = Streamer(geometry.paths, hooks.num_readers, hooks.open_file)
    engine.on_close(streamer.close)
    store = engine.store = ExpertStore(geometry, plans, streamer, engine.stop)
    engine.on_close(store.close)
    for pool in store.pools:
        pool.touch_ahead(streamer.readers)
    if hooks.warm_start:
        engine.on_close(lambda: _save_residents(store, trunk))
    engine.on_close(streamer.close)  # again, and first: no read may outlive the slots
    if hooks.warm_start:
        _start_warm(store, trunk)
    executor = ExpertExecutor(geometry.layers, shape.batch_tokens, shape.threads)
    engine.on_close(executor.close)
    make_seam = NativeSeam if hooks.native else Seam
    seam = engine.seam = make_seam(geometry, store, executor, engine.stop)
    engine.on_close(seam.close)
    seam.attach(geometry, experts)
    engine.context = LlamaContext(engine.model, shape, hook=seam, stop=engine.stop)
    engine.on_close(engine.context.close)
    check.finish()


def _load_trunk(
    trunk: Path, experts: ExpertBuffer, progress: Progress | None, check: TrunkCheck
) -> LlamaModel:
    try:
        return LlamaModel(trunk, experts=experts, progress=progress)
    except ModelFileError:  # of a damaged trunk llama.cpp may say anything
        check.compare_file()
        raise


def _start_warm(store: ExpertStore, trunk: Path) -> None:
    """What cannot be used is of a form that only another version writes: it is no error."""
    saved = read_residents(trunk)
    if saved is not None:
        try:
            store.start_warm(saved)
        except ValueError as error:
            _log.warning("cannot start from what was saved beside %s: %s", trunk, error)


def _save_residents(store: ExpertStore, trunk: Path) -> None:
    residents = store.residents()
    if residents is not None:
        save_residents(trunk, residents)


def _without_holes(progress: Progress, factor: float) -> Progress:
    """llama.cpp counts the trunk file's holes as work to do, and never does it."""
    return lambda share: progress(min(1.0, share * factor))
