"""`load()` and the model it gives: generate, chat, logits, stats."""

import logging
import random
import sys
import threading
import weakref
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from importlib.resources import files
from operator import index
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt
import platformdirs

from haversack.devices.errors import (
    ContextError,
    DamagedTrunkError,
    HaversackError,
    ModelFileError,
    PromptError,
    StorageError,
)
from haversack.devices.interrupts import StopFlag
from haversack.devices.ledger import Entry, Lease, ledger
from haversack.devices.memory import PeakMeter
from haversack.devices.storage import DirectFile, known_speed
from haversack.devices.system import host
from haversack.devices.tokenizing import LEAST_STACK_BYTES
from haversack.edge.decode import Decoder
from haversack.edge.generation import CallGate, Closable, Generation, Request
from haversack.edge.lease import lease_for, pools_left
from haversack.edge.planner import DEFAULT_BATCH_TOKENS, STREAMED, Plan, plan
from haversack.edge.ram_budget import Budget
from haversack.edge.sampling import MAX_SEED, Sampling
from haversack.edge.stats import Stats
from haversack.edge.templates import ChatTemplate
from haversack.edge.text import without_mark
from haversack.offload.engine import Engine, LoadHooks, open_resident, open_streamed
from haversack.offload.seam import Forecast, Watcher
from haversack.offload.streamer import NUM_READERS, OpenFile
from haversack.quant.gguf import hole_in, read_geometry
from haversack.quant.trunk import ensure_trunk, rewrite_trunk

_log = logging.getLogger("haversack.model")

_SURELY_CHARS = 16  # of a token: fewer than these for each of the context may well fit

Prompt = str | Sequence[int]
Message = Mapping[str, Any]
LoadProgress = Callable[[str, float], None]  # (what is being done, share done 0 to 1)


@dataclass(frozen=True)
class LoadOptions:
    """The rarer settings of `load`.

    `batch` is the prompt tokens computed at once, `cache_dir` where trunk files lie (the user's
    cache folder by default), `progress` is told what is being done and the share done.
    `open_file` opens a file to read experts from; benchmarks give one of a known speed. `native`
    False has Python alone take single tokens through their experts: slower, the same to the bit.
    `warm_start` has a streamed model start from the experts its last run left, read back while
    nothing else is asked for, and leave its own when closed; without it a run neither reads nor
    writes which experts were used.
    """

    batch: int = DEFAULT_BATCH_TOKENS
    cache_dir: Path | None = None
    progress: LoadProgress | None = None
    open_file: OpenFile = DirectFile
    native: bool = True
    warm_start: bool = True


def default_cache_dir() -> Path:
    """Where trunk files lie unless told otherwise."""
    return Path(platformdirs.user_cache_dir("haversack")) / "trunks"


def builtin_model() -> Path:
    """The small model that comes with haversack."""
    return Path(str(files("haversack.edge") / "builtin" / "tales-moe.gguf"))


def load(
    model: str | Path | Plan,
    ram: str | int | Budget | None = None,
    ctx: int | None = None,
    threads: int | None = None,
    seed: int | None = None,
    options: LoadOptions | None = None,
) -> "Model":
    """A model ready to generate, inside `ram` bytes of anonymous memory of this process.

    `model` is the path of a GGUF (any part of a split one) or a plan; with a plan, `ram`, `ctx`
    and `threads` must not be given. `ram` is a size ("6GiB"), bytes, or a `Budget` that several
    models share, see `plan`: the process never takes more than what its open models were given
    together. A model that is dropped without `close` keeps its memory and its part of the budget.
    One model is loaded at a time; loads of other threads wait. `seed` makes all sampling
    repeatable. The first load of a model writes its trunk file into the cache; one that turns out
    to be damaged is written anew, which is logged as a warning.

    Raises BudgetError, ModelFileError, StorageError, UnitError, KeyboardInterrupt; nothing is
    left behind then.
    """
    options = options or LoadOptions()
    if isinstance(model, Plan):
        if (ram, ctx, threads) != (None, None, None):
            raise PromptError("a plan says ram, ctx and threads already: give either")
        planned = model
    else:
        planned = plan(model, ram, ctx, threads, options.batch)
    stop, loaded = StopFlag(), list[Model]()
    try:
        # Ctrl-C comes where a step has ended, and leaves nothing behind
        with ledger.loading(), stop.listening():
            loaded.append(_loaded(planned, options, stop, seed))
    except KeyboardInterrupt:
        for found in loaded:
            found.close()
        raise
    return loaded[0]


def _loaded(planned: Plan, options: LoadOptions, stop: StopFlag, seed: int | None) -> "Model":
    lease = lease_for(planned)
    try:
        with ledger.measured(lease):
            peak = PeakMeter()
            engine = _open(planned, options, stop, lease)
        return Model(planned, Decoder(engine, planned, lease, peak), lease, seed)
    except BaseException:
        host.give_back_freed_memory()
        lease.close()
        raise


def _open(planned: Plan, options: LoadOptions, stop: StopFlag, lease: Lease) -> Engine:
    def report(what: str) -> Callable[[float], None]:
        def tell(share: float) -> None:
            if stop.requested:
                raise KeyboardInterrupt
            if options.progress is not None:
                options.progress(what, share)

        return tell

    if planned.mode == STREAMED and sys.platform == "win32":
        raise HaversackError("experts cannot be streamed on Windows: raise --ram until all fits")
    if read_geometry(planned.path) != planned.geometry:
        raise ModelFileError(f"{planned.path} has changed since it was planned: plan again")
    hole = hole_in(planned.geometry)
    if hole is not None:
        _log.warning("%s: unless zeros are meant there, get the file again", hole)
    if planned.mode != STREAMED:
        return open_resident(planned.path, planned.shape, report("loading"))
    cache_dir, write = options.cache_dir or default_cache_dir(), report("writing the trunk")
    trunk = ensure_trunk(planned.geometry, cache_dir, write)
    speed = known_speed(planned.path, cache_dir)
    hooks = LoadHooks(
        report("loading"),
        options.open_file,
        NUM_READERS if speed is None else speed.enough_readers,
        options.native,
        options.warm_start,
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


class Model:
    """A loaded model. Use it in a `with` block, or `close` it.

    One call runs at a time: calls of other threads wait. After an error in a call (a disk that
    fails, say) the model stays usable.
    """

    def __init__(self, planned: Plan, decoder: Decoder, lease: Lease, seed: int | None) -> None:
        self.plan = planned
        self._engine: Engine | None = decoder.engine
        self._decoder, self._lease = decoder, lease
        self._state = threading.Lock()  # held while figures are read, and freed
        self._last_stats: Stats | None = None
        self._gate = CallGate()
        self._random = random.Random(seed)
        self._seed = seed

    # ------------------------------------------------------------- generation
    def generate(
        self,
        prompt: Prompt,
        max_tokens: int | None = None,
        sampling: Sampling | None = None,
        **settings: Any,
    ) -> Generation:
        """Text that goes on from `prompt`, as an iterator of pieces.

        `prompt` is text or token ids; for a model without a vocabulary, ids or a text of ids
        with spaces, and the text generated is of that kind too. `max_tokens` None means until
        the context is full. `settings` are fields of `Sampling` (`temperature=0`,
        `stop=("\\n",)`, ...) that change `sampling`.

        Raises PromptError, ContextError; while iterating also StorageError.
        """
        self._gate.check_open()
        chosen = _chosen(sampling, settings)
        tokens = self._prompt_tokens(prompt)
        limit = self.plan.shape.ctx_tokens if max_tokens is None else max_tokens
        if limit < 0:
            raise PromptError(f"max_tokens is {max_tokens}: give 0 or more")
        if not tokens:
            raise PromptError("the prompt is empty and this model has no start token: give text")
        seed = self._sampler_seed(chosen)
        return Generation(Request(self._decoder, self._gate, tokens, limit, chosen, seed))

    def chat(
        self,
        messages: Sequence[Message],
        max_tokens: int | None = None,
        sampling: Sampling | None = None,
        **settings: Any,
    ) -> Generation:
        """The assistant's reply to `messages` ({"role": ..., "content": ...}), as `generate`.

        The prompt is rendered by the model file's own template. Raises PromptError if it has
        none or refuses the messages.
        """
        prompt = self.chat_template().render(messages)
        return self.generate(self._prompt_tokens(prompt), max_tokens, sampling, **settings)

    def _prompt_tokens(self, prompt: Prompt) -> list[int]:
        if not isinstance(prompt, str):
            return self.tokenize(prompt)
        prompt, ctx_tokens = without_mark(_encodable(prompt)), self.plan.shape.ctx_tokens
        if len(prompt) > ctx_tokens * _SURELY_CHARS:  # a text of that length takes long to tokenize
            with self._in_use() as engine:
                least_tokens = engine.model.vocabulary.least_tokens(prompt)
            if least_tokens > ctx_tokens:
                raise ContextError(
                    f"the prompt has at least {least_tokens} tokens, the context holds"
                    f" {ctx_tokens}: shorten it or raise --ctx"
                )
        return self.tokenize(prompt)

    def chat_template(self) -> ChatTemplate:
        """The model file's chat template. Raises PromptError if it has none."""
        with self._in_use() as engine:
            source, vocabulary = engine.model.chat_template, engine.model.vocabulary
            bos, eos = vocabulary.bos, vocabulary.eos
        if source is None:
            raise PromptError(f"{self.plan.path.name} has no chat template: use run or generate()")
        return ChatTemplate(source, bos=bos, eos=eos)

    def tokenize(self, prompt: Prompt, add_special: bool = True) -> list[int]:
        """The ids of `prompt`. `add_special` puts the model's start token before a text that does
        not begin with it. Raises PromptError for ids outside the vocabulary, ClosedError."""
        with self._in_use() as engine:
            vocabulary = engine.model.vocabulary
            if isinstance(prompt, str) and vocabulary.has_text:
                return vocabulary.tokenize(
                    _encodable(prompt),
                    add_special=add_special,
                    most_stack_bytes=max(LEAST_STACK_BYTES, self.plan.headroom_bytes),
                )
        try:
            ids = map(int, prompt.split()) if isinstance(prompt, str) else map(index, prompt)
            tokens = list(ids)
        except ValueError:
            raise PromptError(
                f"{self.plan.path.name} has no vocabulary: give token ids, not {prompt!r}"
            ) from None
        except TypeError:
            raise PromptError(f"the prompt is {prompt!r}: give text or whole token ids") from None
        strange = [i for i in tokens if not 0 <= i < vocabulary.num_tokens]
        if strange:
            raise PromptError(
                f"token id {strange[0]} is not in the vocabulary: give 0 to"
                f" {vocabulary.num_tokens - 1}"
            )
        return tokens

    def _sampler_seed(self, sampling: Sampling) -> int:
        if sampling.seed >= 0:
            return sampling.seed
        return self._random.randint(0, MAX_SEED)

    def budget(self) -> list[Entry]:
        """What each part of this model's budget is for, and how much of it is held now. With the
        entry "free" they add up to `plan.ram_bytes`. Takes about 5 ms for each GiB of slots.
        Raises ClosedError."""
        with self._in_use() as engine:
            store = engine.store
            slots_bytes = sum(pool.resident_bytes for pool in store.pools) if store else 0
            process = Entry("process", self.plan.process_bytes, ledger.others_bytes())
            entries = [process, *self._lease.entries(slots_bytes)]
        free_bytes = self.plan.ram_bytes - sum(entry.reserved_bytes for entry in entries)
        return [*entries, Entry("free", free_bytes, 0)]

    # ----------------------------------------------------------------- logits
    def logits(self, tokens: Sequence[int], prefill: int) -> npt.NDArray[np.float32]:
        """Logits (len(tokens) - prefill + 1, vocabulary) float32: after the first `prefill`
        tokens, computed in one batch, and after each of the others, computed one at a time.

        A `prefill` above the plan's batch takes several. The rows must fit into what the budget
        has free. Raises PromptError, ContextError, BudgetError, StorageError.
        """
        rows = self.iter_logits(tokens, prefill)
        num_rows, num_columns = len(tokens) - prefill + 1, self.vocab_size
        row_bytes = num_columns * np.dtype(np.float32).itemsize
        what, knob = f"{num_rows} rows of logits", "take them one by one with iter_logits"
        need_bytes = (num_rows + 1) * row_bytes  # a row is copied from one of its own
        budget = self._lease.budget
        with ledger.borrowed(budget, need_bytes, what, knob) as borrowed, closing(rows):
            logits = np.empty((num_rows, num_columns), np.float32)
            for number, row in enumerate(rows):
                logits[number] = row
                borrowed.grow(row_bytes)
        return logits

    def iter_logits(
        self, tokens: Sequence[int], prefill: int
    ) -> Generator[npt.NDArray[np.float32], None, None]:
        """The rows of `logits`, (vocabulary,) float32 each, as they are computed.

        The model is held from the first row until the last is taken or the iterator closed.
        Raises as `logits`.
        """
        self._gate.check_open()
        if not 1 <= prefill <= len(tokens):
            raise PromptError(f"prefill is {prefill}: give 1 to {len(tokens)}, the tokens' number")
        call: list[weakref.ref[Generator[npt.NDArray[np.float32], None, None]]] = []
        rows = self._logit_rows(self.tokenize(tokens), prefill, lambda: call[0]())
        call.append(weakref.ref(rows))
        return rows

    def _logit_rows(
        self, checked: Sequence[int], prefill: int, call: Callable[[], Closable | None]
    ) -> Generator[npt.NDArray[np.float32], None, None]:
        stop = StopFlag()
        with self._gate.entered(stop, call):
            self._decoder.engine.stop.clear(stop)
            self._gate.check_open()
            with stop.listening():
                self._decoder.clear()
                self._decoder.prefill(checked[:prefill])
            yield self._decoder.logits()
            for token in checked[prefill:]:
                with stop.listening():
                    self._decoder.step(token)
                yield self._decoder.logits()

    # ------------------------------------------------------------------ state
    @property
    def vocab_size(self) -> int:
        """How many tokens there are: ids go from 0 to one less. Raises ClosedError."""
        with self._in_use() as engine:
            return engine.model.vocabulary.num_tokens

    def stats(self) -> Stats:
        """Totals since loading; those of its whole life once the model is closed. Raises
        ClosedError in a process forked from the one that loaded it."""
        self._gate.birthplace.check()
        with self._state:
            return self._last_stats or self._decoder.stats()

    def watch_routing(self, watcher: Watcher | None, forecast: Forecast | None = None) -> None:
        """Have `watcher` told of every router's choice while the model runs: the layer, the ids
        (tokens, experts per token), which it may change in place, and their node in llama.cpp's
        graph, valid until it returns (`offload.predictor.chosen_probabilities` takes it).

        Nothing is read ahead meanwhile but what `forecast` says, if it is given: from a layer's
        number, the experts that it may choose for the token under way, the likeliest first. Raises
        HaversackError where no expert is streamed, as no router is looked at then, ClosedError."""
        with self._in_use() as engine:
            if engine.seam is None:
                raise HaversackError(
                    "all experts are in memory and no router is watched: lower --ram"
                )
            engine.seam.watch(watcher, forecast)

    def check_integrity(self) -> None:
        """Raise AssertionError unless our own books agree; for tests and the worried. Raises
        ClosedError."""
        with self._in_use() as engine:
            if engine.store is not None:
                engine.store.check_integrity()

    @contextmanager
    def _in_use(self) -> Iterator[Engine]:
        """The engine, which is not freed inside the block. Raises ClosedError."""
        with self._gate.beside():
            assert self._engine is not None, "a model that is open has an engine"
            yield self._engine

    def close(self) -> None:
        """Stop a call that runs and give all memory back to the system; may be called twice.
        Raises ClosedError if called from inside a call of this thread that runs.

        After Ctrl-C in a long text's tokenization that has not ended yet, a thread waits for it and
        frees the memory then. In a process forked from the one that loaded the model nothing
        happens.
        """
        if not self._gate.birthplace.is_here:
            return
        self._gate.refuse()
        self._decoder.engine.stop.request()
        with StopFlag().listening(), self._gate.closing(), self._state:
            if self._engine is None:
                return
            self._last_stats = self._last_stats or self._decoder.stats()  # else it was interrupted
            if self._engine.model.vocabulary.tokenizer.is_busy:
                threading.Thread(target=self._free, args=[self._engine], daemon=True).start()
            else:
                self._free(self._engine)
            self._engine = None

    def _free(self, engine: Engine) -> None:
        engine.close()
        host.give_back_freed_memory()
        self._lease.close()

    def __enter__(self) -> "Model":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def _chosen(sampling: Sampling | None, settings: Mapping[str, Any]) -> Sampling:
    try:
        return replace(sampling or Sampling(), **settings)
    except TypeError as error:
        raise PromptError(f"unknown sampling setting: {error}") from None


def _encodable(text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise PromptError(f"the prompt is no Unicode text: {error.reason}") from None
    return text
