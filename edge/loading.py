"""`load()`: makes a model from a plan."""

import contextlib
import logging
import os
import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from importlib.resources import files
from numbers import Integral
from pathlib import Path
from types import NoneType
from typing import Any, cast

from typing_extensions import Unpack

from haversack.cache.cross_vocab import PairStore
from haversack.cache.ngram import TABLE_BYTES
from haversack.devices.errors import (
    DamagedTrunkError,
    ModelFileError,
    PromptError,
    StorageError,
)
from haversack.devices.interrupts import StopFlag
from haversack.devices.ledger import Lease, ledger
from haversack.devices.llama import EXACT_KV_TYPE, KV_TYPES
from haversack.devices.memory import PeakMeter, beyond_ram
from haversack.devices.storage import DirectFile, known_speed
from haversack.devices.system import host
from haversack.devices.units import size_bytes
from haversack.edge.cache_dir import default_cache_dir, kv_folder
from haversack.edge.context_shape import DEFAULT_BATCH_TOKENS, ShapeSettings
from haversack.edge.draft_model import DraftModel
from haversack.edge.draft_text import Vocabularies
from haversack.edge.fidelity import Fidelity
from haversack.edge.forecasting import known_facts, record_of
from haversack.edge.kv_disk import KvDisk
from haversack.edge.learning.opening import learner_of
from haversack.edge.lease import lease_for, pools_left
from haversack.edge.loop import EngineLoop
from haversack.edge.model import Model
from haversack.edge.model_devices import ModelDevices
from haversack.edge.model_plan import EXACT, STREAMED, Plan
from haversack.edge.placement import FREE, checked_placement
from haversack.edge.planner import plan, with_drafts
from haversack.edge.run_records import keep_record, record_key
from haversack.edge.sampling import check_seed
from haversack.edge.shared_budget import Budget
from haversack.edge.speculate import AUTO, Asked, Helper, Speculation, asked_for, speculation_of
from haversack.edge.trunk_plan import AUTO_TRUNK, checked_trunk
from haversack.edge.vram import DeviceSettings, Vram, asked_vram
from haversack.offload.engine import Engine, LoadHooks, open_resident, open_streamed
from haversack.offload.expert_files import NUM_READERS, OpenFile
from haversack.offload.ngram_file import read_table, save_table
from haversack.offload.pairs_file import read_pairs, save_pairs
from haversack.quant.gguf import hole_in, read_geometry
from haversack.quant.trunk import ensure_trunk, rewrite_trunk, trunk_path

_log = logging.getLogger("haversack.model")

LoadProgress = Callable[[str, float], None]  # (what is being done, share done 0 to 1)


_A_NUMBER = Integral, "a whole number"
_PATH, _FUNCTION = (str, os.PathLike), cast(type, Callable)
_KINDS: Mapping[str, tuple[Any, str]] = {  # of the values of `LoadOptions`, and what to give
    "batch": _A_NUMBER,
    "sequences": _A_NUMBER,
    "speculate": (_PATH, "auto, off, ngram, ngram:N, or the path of a model that drafts"),
    "cache_dir": ((*_PATH, NoneType), "the path of a folder"),
    "progress": ((_FUNCTION, NoneType), "a function"),
    "open_file": (_FUNCTION, "a function"),
    "warm_start": (bool, "True or False"),
    "fidelity": (str | Fidelity, "the name of a mode, or a Fidelity"),
    "kv_type": (str, f"one of {', '.join(KV_TYPES)}"),
    "kv_disk": (str | Integral | None, "a size such as '10GiB'"),
}


@dataclass(frozen=True)
class LoadOptions:
    """The rarer settings of `load`.

    `batch` is the number of prompt tokens computed at once, `sequences` how many texts are held and
    continued at the same time, each with a context of its own. `speculate` says whether tokens are
    drafted and computed beside the next one: "auto" where that was measured to be faster, "off",
    or, for measuring, "ngram" always, up to 6 tokens, and "ngram:3" up to 3. The path of a
    model, in GGUF or ONNX, means that it drafts too, where that is faster; its vocabulary may be
    another one, and with "+learn" behind the path of a GGUF it learns from the texts. All that
    drafts take at most `speculate_memory`, a size ("64MiB"): what does not fit is made smaller; a
    plan that is given says that itself. `cache_dir` is where trunk files lie (the user's cache
    folder by default). `progress` is called with the step and the share done. `open_file` opens a
    file to read experts from; benchmarks give one of a known speed. With `warm_start`, a streamed
    model reads back the experts that its last run saved, while no other read is wanted, and saves
    its own when closed. Without it, nothing is read back or saved. What drafts come from, and the
    speed that later forecasts are made of, are kept from run to run in the same way.
    `fidelity` is a mode's name or a `Fidelity`. `kv_type` is the block type of the context's keys
    and values, `vram` memory of devices, `placement` whether experts move there and `trunk`
    whether layers lie there, see `plan`. With `kv_disk`, a size ("10GiB"), those of a text whose
    place another one takes, and of all texts when the model is closed, wait in a folder of the
    cache of at most that size for a prompt that begins as they do.
    """

    batch: int = DEFAULT_BATCH_TOKENS
    sequences: int = 1
    speculate: str = AUTO
    speculate_memory: str | int | None = None
    cache_dir: str | Path | None = None
    progress: LoadProgress | None = None
    open_file: OpenFile = DirectFile
    warm_start: bool = True
    fidelity: str | Fidelity = EXACT
    kv_type: str = EXACT_KV_TYPE
    kv_disk: str | int | None = None
    vram: Vram = None
    placement: str = FREE
    trunk: str = AUTO_TRUNK

    def __post_init__(self) -> None:
        for name, (kinds, wanted) in _KINDS.items():
            value = getattr(self, name)
            if not isinstance(value, kinds) or (isinstance(value, bool) and kinds is not bool):
                raise PromptError(f"{name} is {value!r}: give {wanted}")
        self.asked_drafts()
        self.asked_fidelity()
        if self.kv_disk is not None:
            size_bytes(self.kv_disk)
        asked_vram(self.vram)
        checked_placement(self.placement)
        checked_trunk(self.trunk)

    def shape(self) -> ShapeSettings:
        """Return what it says of the context, and of where it lies."""
        return {
            "batch": self.batch,
            "sequences": self.sequences,
            "kv_type": self.kv_type,
            "trunk": self.trunk,
        }

    def asked_drafts(self) -> Asked:
        """Return how to draft. Raises PromptError, UnitError."""
        return asked_for(self.speculate, self.speculate_memory)

    def asked_fidelity(self) -> Fidelity:
        """Return `fidelity` whole. Raises PromptError."""
        return self.fidelity if isinstance(self.fidelity, Fidelity) else Fidelity(self.fidelity)


def builtin_model() -> Path:
    """Return the path of the small model that comes with haversack."""
    return Path(str(files("haversack.edge") / "builtin" / "tales-moe.gguf"))


def load(
    model: str | Path | Plan,
    ram: str | int | Budget | None = None,
    ctx: int | None = None,
    threads: int | None = None,
    seed: int | None = None,
    options: LoadOptions | None = None,
    **devices: Unpack[DeviceSettings],
) -> "Model":
    """Return a model ready to generate, inside `ram` bytes of anonymous memory of this process.

    `model` is the path of a GGUF (any part of a split one) or a plan, which says `ram`, `ctx`,
    `threads`, `vram`, `placement`, `batch`, `sequences`, `kv_type` and maybe the fidelity itself.
    `ram` is a size ("6GiB"), bytes, or a `Budget` that several models share, see `plan`: the
    process never takes more than what its open models were given together. `vram` and `placement`
    may be given here in place of the options'. A model that is dropped without `close`
    keeps its memory and its part of the budget. One model is loaded at a time; loads of other
    threads wait. `seed` makes all sampling repeatable. The first load of a model writes its trunk
    file into the cache; one that turns out to be damaged is written anew, which is logged as a
    warning.

    Raises BudgetError, DeviceError, ModelFileError, StorageError, UnitError, KeyboardInterrupt;
    nothing is left behind then.
    """
    options = options or LoadOptions()
    if not isinstance(options, LoadOptions):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise PromptError(f"options is {options!r}: give LoadOptions")
    check_seed(seed)
    options = replace(options, **devices)
    planned = _planned(model, ram, ctx, threads, options)
    stop, loaded = StopFlag(), list[Model]()
    try:
        # KeyboardInterrupt is raised between two steps, so that nothing is left behind
        with ledger.loading, stop.listening():
            loaded.append(_loaded(planned, options, stop, seed))
    except KeyboardInterrupt:
        for found in loaded:
            found.close()
        raise
    if planned.adapts:
        _follow_pressure(loaded[0])
    return loaded[0]


def _planned(
    model: str | Path | Plan,
    ram: str | int | Budget | None,
    ctx: int | None,
    threads: int | None,
    options: LoadOptions,
) -> Plan:
    """Return how the model runs, with what drafts and with the fidelity that is asked for."""
    if isinstance(model, Plan):
        if (ram, ctx, threads, options.vram) != (None, None, None, None):
            raise PromptError("a plan says ram, vram, ctx and threads already: give either")
        planned = model
    else:
        shape, how = options.shape(), options.placement
        planned = plan(model, ram, ctx, threads, vram=options.vram, placement=how, **shape)
    planned = _with_drafts(planned, options.asked_drafts(), isinstance(model, Plan))
    if planned.precision is not None:
        return planned
    folder = Path(options.cache_dir or default_cache_dir())
    return options.asked_fidelity().applied(planned, folder)


def _follow_pressure(model: Model) -> None:
    from haversack.edge.pressure import Pressure

    pressure = Pressure(model)
    model.on_close(pressure.stop)
    pressure.start()


def _with_drafts(planned: Plan, asked: Asked, is_given: bool) -> Plan:
    """Return the plan with what is asked for. One that `is_given` is changed only where it must be:
    where it lacks the model that drafts."""
    if is_given:
        has = planned.drafter
        learns = has is not None and has.learner_bytes > 0
        same = has is not None and asked.draft_from == has.path and asked.learns <= learns
        if asked.draft_from is None or same:
            return planned
    return with_drafts(planned, asked.draft_from, asked.is_off, asked.most_bytes, asked.learns)


def _loaded(planned: Plan, options: LoadOptions, stop: StopFlag, seed: int | None) -> "Model":
    lease = lease_for(planned)
    devices: ModelDevices | None = None
    try:
        if too_much := beyond_ram(planned.planned_bytes):
            _log.warning("%s", too_much)
        with ledger.measured(lease):
            peak = PeakMeter()
            devices = ModelDevices(planned)
            engine = _open(planned, options, stop, lease, devices)
            devices.loaded()
            speculation = _speculation(planned, options, engine)
        loop = EngineLoop(engine, planned, speculation, lease, peak)
        _keep_texts(loop, options)
        _forecast(planned, options, loop)
        return Model(planned, loop, lease, seed, devices)
    except BaseException:
        host.give_back_freed_memory()
        lease.close()
        if devices is not None:
            devices.close()
        raise


def _keep_texts(loop: EngineLoop, options: LoadOptions) -> None:
    """Have texts wait on disk if that is asked for. Raises PromptError, StorageError."""
    if options.kv_disk is not None:
        try:
            folder, limit_bytes = kv_folder(options.cache_dir), size_bytes(options.kv_disk)
            loop.keep_on(KvDisk(folder, limit_bytes, loop.keeper))
        except BaseException:
            loop.engine.close()
            raise


def _forecast(planned: Plan, options: LoadOptions, loop: EngineLoop) -> None:
    """Have the model's figures forecast from what is known, and keep what this run measures."""
    folder, figures = Path(options.cache_dir or default_cache_dir()), loop.figures
    figures.facts = facts = known_facts(planned, folder, measure=False)

    def keep() -> None:
        decoding = figures.decoding
        record = record_of(planned, decoding.steady, facts, decoding.prompts)
        if record is not None and figures.plan.slot_bytes == planned.slot_bytes:
            record = replace(record, device_shares=_device_shares(loop.engine))
            with contextlib.suppress(OSError):  # a full disk costs a better forecast, no more
                keep_record(folder, record_key(planned, folder), record)

    if options.warm_start:
        loop.engine.on_close(keep)


def _device_shares(engine: Engine) -> dict[str, float]:
    """Return which share of the uses of experts each device computed, by name."""
    experts = engine.experts
    uses = 0 if experts is None else experts.hits + experts.misses
    if experts is None or not uses:
        return {}
    return {tier.name: tier.hits / uses for tier in experts.tier_counts()}


def _speculation(planned: Plan, options: LoadOptions, engine: Engine) -> Speculation:
    """Return what drafts, with what it learnt in the model's earlier runs."""
    context, helper = engine.context, None
    if planned.drafter is not None and context.drops_parts:
        helper = _helper(planned, options, engine)
    asked, sizes = options.asked_drafts(), planned.draft_sizes
    text_tokens = sizes.tokens_of(planned.shape)
    made = speculation_of(asked, context.drops_parts, text_tokens, helper, sizes.table_bytes)
    if made.is_off or not options.warm_start:
        return made
    folder, table = Path(options.cache_dir or default_cache_dir()), made.memory.table
    with contextlib.suppress(StorageError):  # the model's file is gone: nothing is kept of it
        trunk = trunk_path(planned.geometry, folder)
        if table.nbytes == TABLE_BYTES:  # a smaller one is not kept: it would replace the whole one
            saved = read_table(trunk, table.nbytes)
            if saved is not None:
                table[:] = saved
            engine.on_close(lambda: save_table(trunk, table))
        if helper is not None and not helper.vocabularies.are_same:
            _keep_pairs(trunk, helper.vocabularies, engine)
    return made


def _keep_pairs(trunk: Path, both: Vocabularies, engine: Engine) -> None:
    """Read what earlier runs learnt of the two vocabularies, and save it at the end."""
    pairs, name = both.pairs, both.name
    read_pairs(trunk, name, pairs, (both.draft.num_tokens, both.target.num_tokens))
    engine.on_close(lambda: save_pairs(trunk, name, pairs))


def _helper(planned: Plan, options: LoadOptions, engine: Engine) -> Helper:
    """Load the model that drafts."""
    assert planned.drafter is not None
    model = DraftModel(planned.drafter)
    engine.on_close(model.close)
    pairs = PairStore(planned.drafter.pair_bytes)
    both = Vocabularies(engine.model.vocabulary, model.model.vocabulary, pairs)
    if not planned.drafter.learner_bytes:
        return Helper(model, both)
    folder = Path(options.cache_dir or default_cache_dir()) if options.warm_start else None
    learner = learner_of(planned, model, both, folder)
    engine.on_close(learner.close)
    return Helper(model, both, learner)


def _open(
    planned: Plan,
    options: LoadOptions,
    stop: StopFlag,
    lease: Lease,
    devices: ModelDevices,
) -> Engine:
    def report(what: str) -> Callable[[float], None]:
        def tell(share: float) -> None:
            if stop.requested:
                raise KeyboardInterrupt
            if options.progress is not None:
                options.progress(what, share)

        return tell

    if read_geometry(planned.path) != planned.geometry:
        raise ModelFileError(f"{planned.path} has changed since it was planned: plan again")
    _warn_of_gaps(planned)
    if planned.mode != STREAMED:
        return open_resident(planned.path, planned.shape, report("loading"), devices.trunk())
    return _open_streamed(planned, options, lease, report, devices)


def _warn_of_gaps(planned: Plan) -> None:
    """Tell of zeros where experts lie, and of low copies that were not made yet."""
    hole = hole_in(planned.geometry)
    if hole is not None:
        _log.warning("%s: unless zeros are meant there, get the file again", hole)
    if planned.low_share < 1:
        _log.warning(
            "%s: %.1f%% of the experts have a low copy, the others are read whole: `haversack"
            " prepare %s` goes on",
            planned.path.name, 100 * planned.low_share, shlex.quote(str(planned.path)),
        )  # fmt: skip


def _open_streamed(
    planned: Plan,
    options: LoadOptions,
    lease: Lease,
    report: Callable[[str], Callable[[float], None]],
    devices: ModelDevices,
) -> Engine:
    """Open a model with its trunk, which is written where it is lacking and once more where it is
    damaged. Raises StorageError if it is damaged then, too."""
    cache_dir, write = Path(options.cache_dir or default_cache_dir()), report("writing the trunk")
    trunk = ensure_trunk(planned.geometry, cache_dir, write)
    speed = known_speed(planned.path, cache_dir)
    hooks = LoadHooks(
        report("loading"),
        options.open_file,
        NUM_READERS if speed is None else speed.enough_readers,
        options.warm_start,
        planned.precision,
        planned.leaning,
        devices.tiers(),
        devices.trunk(),
    )
    pools = partial(pools_left, planned, lease)

    def opened() -> Engine:
        return open_streamed(planned.geometry, trunk, planned.shape, pools, hooks)

    try:
        return opened()
    except DamagedTrunkError as damage:
        _log.warning("%s; it is written anew from the model", damage)
    rewrite_trunk(planned.geometry, cache_dir, write)
    try:
        return opened()
    except DamagedTrunkError as damage:
        raise StorageError(
            f"{damage}, right after it was written: the drive or the memory may fail, choose"
            " another folder with --cache-dir or try another computer"
        ) from damage
