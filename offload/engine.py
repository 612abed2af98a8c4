"""A loaded model that can decode: wholly in memory, or with its experts streamed."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from haversack.cache.routing import Leaning
from haversack.devices.errors import HaversackError, ModelFileError, StorageError
from haversack.devices.interrupts import StopFlag
from haversack.devices.llama import ContextShape, LlamaContext, OnNode
from haversack.devices.llama_model import LlamaModel, Progress
from haversack.devices.storage import DirectFile
from haversack.devices.trunk_placement import TrunkPlacement
from haversack.offload._native import weight_memory
from haversack.offload.activations import ActivationWatch, ActivationWatcher, WeightWatcher
from haversack.offload.device import ContextDevice
from haversack.offload.expert_buffer import ExpertBuffer
from haversack.offload.expert_engine import EngineOptions, ExpertEngine, Predict
from haversack.offload.expert_files import NUM_READERS, ExpertFiles, OpenFile
from haversack.offload.pool import ExpertPool, PoolPlan
from haversack.offload.precision import Precision
from haversack.offload.resident_file import read_residents, save_residents
from haversack.offload.routing import RoutingWatch, Watcher
from haversack.offload.tier import DeviceTier
from haversack.offload.trunk_check import TrunkCheck
from haversack.quant.gguf import EXPERT_PATTERN, ModelGeometry
from haversack.quant.trunk import hole_names

_log = logging.getLogger("haversack.engine")

PoolPlans = Callable[[], Sequence[PoolPlan]]


@dataclass(frozen=True)
class LoadHooks:
    """How a model is loaded.

    `progress` is called with the share done, `open_file` opens the files of its experts,
    `num_readers` is how many reads their drive needs at once. With `warm_start` the model starts
    with the experts that its last run saved. With `precision` some experts are used as low copies;
    without it all are exact. With `leaning` the choice of experts leans to those in slots. `tiers`
    are devices with slots, the fastest first. `placement` says which layers lie on devices; without
    it none does.
    """

    progress: Progress | None = None
    open_file: OpenFile = DirectFile
    num_readers: int = NUM_READERS
    warm_start: bool = True
    precision: Precision | None = None
    leaning: Leaning | None = None
    tiers: tuple[DeviceTier, ...] = ()
    placement: TrunkPlacement | None = None


class Engine:
    """A model, its one context and the device that computes parts of it; with `experts` and
    `files` if experts are streamed."""

    def __init__(self, shape: ContextShape) -> None:
        self.stop = StopFlag()
        self.model: LlamaModel
        self.context: LlamaContext
        self.experts: ExpertEngine | None = None
        self.files: ExpertFiles | None = None
        self._shape = shape
        self._device: ContextDevice
        self._closers: list[Callable[[], None]] = []

    def open_context(self, device: ContextDevice) -> None:
        """Make the context, whose graphs `device` computes in part."""
        self._device = device
        self.on_close(device.close)
        self._renew_context(None)
        self.on_close(lambda: self.context.close())

    def _renew_context(self, on_node: OnNode | None) -> None:
        if hasattr(self, "context"):
            self.context.close()
        self.context = LlamaContext(self.model, self._shape, self._device, self.stop, on_node)

    def watch(self, watcher: Watcher | None, predict: Predict | None = None) -> None:
        """Have `watcher` called for every choice of a router, see `RoutingWatch`; None ends that.

        The context is made anew, and is empty. Raises HaversackError if no experts are streamed.
        """
        if self.experts is None:
            raise HaversackError("all experts are in memory and no router is watched: lower --ram")
        if predict is not None:
            self.experts.predict_by(predict)
        else:
            self.experts.predict_by_routers(watcher is None)
        watch = None if watcher is None else RoutingWatch(watcher, self.experts).on_node
        self._renew_context(watch)

    def watch_activations(
        self, watcher: ActivationWatcher, weight_watcher: WeightWatcher | None = None
    ) -> ActivationWatch:
        """Have `watcher` told what the experts are multiplied with, and `weight_watcher` how the
        routers weigh them, see `ActivationWatch`, until `watch` is called. The context is made
        anew, and is empty."""
        if self.experts is not None:
            self.experts.predict_by_routers(True)
        made = ActivationWatch(watcher, weight_watcher, streamed=self.experts is not None)
        self._renew_context(made.on_node)
        return made

    def on_close(self, closer: Callable[[], None]) -> None:
        """Have `close` call `closer`, before the closers that were given earlier."""
        self._closers.append(closer)

    def close(self) -> None:
        """Free everything, last made first; may be called twice."""
        while self._closers:
            self._closers.pop()()


def open_resident(
    path: Path,
    shape: ContextShape,
    progress: Progress | None = None,
    placement: TrunkPlacement | None = None,
) -> Engine:
    """Open a model wholly in memory, the host's and that of the devices of `placement`: llama.cpp
    multiplies with experts. Raises ModelFileError."""
    engine = Engine(shape)
    try:
        engine.model = LlamaModel(
            path, progress=progress, placement=placement, weight_memory=weight_memory()
        )
        engine.on_close(engine.model.close)
        engine.open_context(ContextDevice(shape.threads))
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
    """Open a model with the trunk in memory and the experts in slots.

    `pool_plans` is called after the trunk was loaded, so that it can measure the memory left.
    Raises DamagedTrunkError, ModelFileError, StorageError, and whatever `pool_plans` and the hooks
    raise.
    """
    engine = Engine(shape)
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
    buffer = ExpertBuffer(EXPERT_PATTERN)
    engine.on_close(buffer.close)
    check = TrunkCheck(trunk, hole_names(geometry))
    engine.model = _load_trunk(trunk, buffer, replace(hooks, progress=progress), check)
    engine.on_close(engine.model.close)
    engine.on_close(check.close)
    check.begin(engine.model)
    experts = _open_experts(engine, geometry, pool_plans(), hooks, shape.batch_tokens)
    if hooks.warm_start:
        engine.on_close(lambda: _save_residents(experts, trunk))
        _start_warm(experts, trunk)
    device = ContextDevice(shape.threads, experts)
    device.attach(geometry, buffer.weights())
    if hooks.leaning is not None:
        experts.lean(hooks.leaning)
    engine.open_context(device)
    if hooks.leaning is not None and not device.can_lean:
        _log.warning("%s: its routers choose in a way that cannot lean to slots", trunk.name)
    check.finish()


def _open_experts(
    engine: Engine,
    geometry: ModelGeometry,
    plans: Sequence[PoolPlan],
    hooks: LoadHooks,
    batch_tokens: int,
) -> ExpertEngine:
    """Open the slots, the readers and the engine. The readers close first, because no read may
    outlive its slot or the engine; then the engine and the slots."""
    pools: list[ExpertPool] = []
    for plan in plans:
        pools.append(ExpertPool(plan))
        engine.on_close(pools[-1].close)
    low_paths = hooks.precision.low.paths if hooks.precision is not None else ()
    paths = (*geometry.paths, *low_paths)
    files = engine.files = ExpertFiles(paths, hooks.num_readers, hooks.open_file)
    options = EngineOptions(hooks.precision, hooks.tiers)
    try:
        experts = ExpertEngine(geometry, pools, files.readers, engine.stop, batch_tokens, options)
    except BaseException:
        files.close()
        raise
    for pool in pools:
        pool.touch_ahead(files.readers)
    engine.on_close(experts.close)
    engine.on_close(files.close)
    engine.experts = experts
    return experts


def _load_trunk(
    trunk: Path, buffer: ExpertBuffer, hooks: LoadHooks, check: TrunkCheck
) -> LlamaModel:
    try:
        return LlamaModel(
            trunk,
            experts=buffer,
            progress=hooks.progress,
            placement=hooks.placement,
            weight_memory=weight_memory(),
        )
    except ModelFileError:  # llama.cpp's error may not show that the trunk is damaged
        check.compare_file()
        raise


def _start_warm(experts: ExpertEngine, trunk: Path) -> None:
    """Start from the saved experts. Unusable ones are no error: another version wrote them."""
    saved = read_residents(trunk)
    if saved is not None:
        try:
            experts.start_warm(saved)
        except ValueError as error:
            _log.warning("cannot start from what was saved beside %s: %s", trunk, error)


def _save_residents(experts: ExpertEngine, trunk: Path) -> None:
    residents = experts.residents()
    if residents is not None:
        save_residents(trunk, residents)


def _without_holes(progress: Progress, factor: float) -> Progress:
    """Return `progress` without the trunk file's holes, which llama.cpp counts and never loads."""
    return lambda share: progress(min(1.0, share * factor))
