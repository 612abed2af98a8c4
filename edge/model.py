"""A loaded model: generate, chat, logits, verify, rewind, stats."""

import importlib
import random
import threading
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import fields, replace
from numbers import Integral
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from haversack.devices.errors import CancelledError, ContextError, PromptError
from haversack.devices.interrupts import StopFlag
from haversack.devices.ledger import Entry, Lease, ledger
from haversack.devices.llama import MOST_ROWS
from haversack.devices.sampler import SamplerTables
from haversack.devices.system import host
from haversack.devices.units import size_bytes
from haversack.edge.call import LogitsCall, MeanCall, RowsCall
from haversack.edge.generation import Generation, GenerationCall
from haversack.edge.loop import EngineLoop
from haversack.edge.model_devices import DeviceUse, ModelDevices
from haversack.edge.model_plan import Plan
from haversack.edge.prompt import Prompt, prompt_tokens, token_ids
from haversack.edge.resizing import resize, resized
from haversack.edge.sampling import MAX_SEED, Sampling
from haversack.edge.sequence import TokenSequence
from haversack.edge.speculate import PassCount, asked_for
from haversack.edge.stats import Stats
from haversack.edge.templates import ChatTemplate
from haversack.offload.activations import ActivationWatch, ActivationWatcher, WeightWatcher
from haversack.offload.engine import Engine
from haversack.offload.expert_engine import Predict
from haversack.offload.routing import Watcher

Message = Mapping[str, Any]
_MOST_TOKENS = 1 << 62  # of a text that no context ends


class Model:
    """A loaded model. Use it in a `with` block, or `close` it.

    Any number of calls may run at once, in one thread or several: as many as the plan has sequences
    are computed together, others wait. After an error in a call (a disk that fails, say) the model
    stays usable.
    """

    def __init__(
        self,
        planned: Plan,
        loop: EngineLoop,
        lease: Lease,
        seed: int | None,
        devices: ModelDevices,
    ) -> None:
        self.plan = planned
        self._engine: Engine | None = loop.engine
        self._loop, self._lease, self._devices = loop, lease, devices
        self._tables = SamplerTables(loop.engine.model.vocabulary.num_tokens)
        self._state = threading.Lock()  # held while figures are read, and freed
        self._last_stats: Stats | None = None
        self._template: ChatTemplate | None = None  # compiled once: that takes up to 0.1 s
        self._random, self._is_repeatable = random.Random(seed), seed is not None

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
        the context is full, or without an end where `Sampling.keep_first` has it go on.
        `settings` are fields of `Sampling` (`temperature=0`, `stop=("\\n",)`, ...) that change
        `sampling`.

        Raises PromptError, ContextError; while iterating also StorageError.
        """
        self._loop.check_open()
        chosen = _chosen(sampling, settings)
        tokens = self._prompt_tokens(prompt)
        most = _MOST_TOKENS if chosen.keep_first else self.plan.shape.ctx_tokens
        limit = most if max_tokens is None else max_tokens
        _check_count("max_tokens", limit)
        if not tokens:
            raise PromptError("the prompt is empty and this model has no start token: give text")
        seed = self._random.randint(0, MAX_SEED) if chosen.seed < 0 else chosen.seed
        may_vary = chosen.seed < 0 and not self._is_repeatable
        call = GenerationCall(tokens, limit, chosen, self.plan, may_vary)
        return Generation(call, self._loop, seed, self._tables)

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
        return self._loop.beside(
            lambda engine: prompt_tokens(prompt, engine.model.vocabulary, self.plan)
        )

    def chat_template(self) -> ChatTemplate:
        """The model file's chat template. Raises PromptError if it has none."""
        return self._loop.beside(self._template_of)

    def _template_of(self, engine: Engine) -> ChatTemplate:
        source, vocabulary = engine.model.chat_template, engine.model.vocabulary
        if source is None:
            raise PromptError(f"{self.plan.path.name} has no chat template: use run or generate()")
        if self._template is None:
            self._template = ChatTemplate(source, bos=vocabulary.bos, eos=vocabulary.eos)
        return self._template

    def piece(self, token: int) -> bytes:
        """The text of a token, which may be a part of a character; of a special one its name.
        Raises ClosedError."""
        return self._loop.beside(lambda engine: engine.model.vocabulary.piece(token, special=True))

    def tokenize(self, prompt: Prompt, add_special: bool = True) -> list[int]:
        """The ids of `prompt`. `add_special` puts the model's start token before a text that does
        not begin with it. Raises PromptError for ids outside the vocabulary, ClosedError."""
        return self._loop.beside(
            lambda engine: token_ids(prompt, engine.model.vocabulary, self.plan, add_special)
        )

    def budget(self, device: str = "ram") -> list[Entry]:
        """What each part of this model's budget is for, and how much of it is held now. With the
        entry "free" they add up to `plan.ram_bytes`, and those of a `device`, by its name in
        `plan.devices`, to its `budget_bytes`. RAM takes about 5 ms for each GiB of slots. Raises
        PromptError for a device without a budget, ClosedError."""
        if device == "ram":
            return _whole(self._loop.beside(self._entries_of), self.plan.ram_bytes)
        return _whole(*self._devices.entries(device))

    def devices(self) -> list[DeviceUse]:
        """What the model has of each of its devices, and what they did since it was loaded. Raises
        ClosedError."""

        def look(engine: Engine) -> list[DeviceUse]:
            return self._devices.uses(engine.experts.tier_counts() if engine.experts else ())

        return self._loop.beside(look)

    def _entries_of(self, engine: Engine) -> list[Entry]:
        pools = engine.experts.pools if engine.experts is not None else ()
        slots_bytes = sum(pool.resident_bytes for pool in pools)
        process = Entry("process", self.plan.process_bytes, ledger.others_bytes())
        return [process, *self._lease.entries(slots_bytes)]

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
        self, tokens: Sequence[int], prefill: int, pause: int = 0
    ) -> Generator[npt.NDArray[np.float32], None, None]:
        """The rows of `logits`, (vocabulary,) float32 each, as they are computed: a few may be
        computed before they are read, but none behind the first `pause` tokens before the rows of
        those were read, so that `stats` can be taken there. Raises as `logits`."""
        self._loop.check_open()
        _check_count("prefill", prefill)
        checked, ctx_tokens = self.tokenize(tokens), self.plan.shape.ctx_tokens
        if not checked:
            raise PromptError("no tokens are given: give one or more")
        if not 1 <= prefill <= len(checked):
            raise PromptError(f"prefill is {prefill}: give 1 to {len(checked)}, the tokens' number")
        if len(checked) > ctx_tokens:
            raise ContextError(
                f"{len(checked)} tokens are given, the context holds {ctx_tokens}: raise --ctx"
            )
        return self._logit_rows(LogitsCall(checked, prefill, pause))

    def _logit_rows(self, call: LogitsCall) -> Generator[npt.NDArray[np.float32], None, None]:
        try:
            while call.results or not call.has_ended or call.error is not None:
                try:
                    if not call.results:
                        with call.stop.listening():
                            self._loop.advance(call)
                except CancelledError:  # the model was closed
                    return
                yield call.results.popleft()
        finally:
            with StopFlag().listening():
                self._loop.leave(call)

    def verify(self, tokens: Sequence[int]) -> npt.NDArray[np.float32]:
        """Append 1 to 7 `tokens` to the sequence of the call that ended last; the logits after each
        of them, (len(tokens), vocabulary) float32, which have the bits of single tokens.

        That sequence holds the prompt and the text of its call, without the last token, which was
        chosen and not computed. `rewind` takes tokens back. Raises PromptError, ContextError,
        StorageError, and BudgetError where a recurrent model's state does not fit in the budget.
        """
        checked = self.tokenize(tokens)
        if not 1 <= len(checked) <= MOST_ROWS:
            raise PromptError(f"{len(checked)} tokens are given: give 1 to {MOST_ROWS}")
        call = RowsCall(checked, prepare=self._prepare_rows)
        self._run(call, self._loop.latest)
        return np.stack(call.results)

    def embed(self, prompt: Prompt, stop: StopFlag | None = None) -> npt.NDArray[np.float32]:
        """The mean of what the last layer gives for each token of `prompt`, scaled to length 1,
        (hidden_size,) float32. Its bits depend on the tokens alone.

        `stop`, which is for this call alone, ends it from any thread. Raises PromptError,
        ContextError, StorageError, CancelledError.
        """
        self._loop.check_open()
        tokens, ctx_tokens = self.tokenize(prompt), self.plan.shape.ctx_tokens
        if not tokens or prompt == "":
            raise PromptError("the text to embed is empty: give text")
        if len(tokens) > ctx_tokens:
            raise ContextError(
                f"the text to embed has {len(tokens)} tokens, the context holds {ctx_tokens}:"
                " shorten it or raise --ctx"
            )
        call = MeanCall(tokens, self.hidden_size)
        call.stop = stop or call.stop
        self._run(call, None)
        mean = call.results.popleft()
        return np.asarray(mean / np.linalg.norm(mean), np.float32)

    def rewind(self, num_tokens: int) -> None:
        """Forget the last `num_tokens` tokens of the sequence of the call that ended last. What is
        computed next has the bits that it would have if they had never been there.

        A model with recurrent layers can only forget what the latest `verify` appended. Raises
        PromptError.
        """
        _check_count("num_tokens", num_tokens)
        self._run(RowsCall([], num_tokens), self._loop.latest)

    def _run(self, call: RowsCall, wanted: TokenSequence | None) -> None:
        with call.stop.listening():
            try:
                self._loop.advance(call, wanted)
            finally:
                self._loop.leave(call)

    def _prepare_rows(self, sequence: TokenSequence) -> None:
        """Take the state of recurrent layers, to rewind to. Raises BudgetError."""
        context = self._loop.engine.context
        if context.drops_parts:
            return
        if sequence.free_snapshot is None:
            num_bytes = context.snapshot_bytes(sequence.number)
            with ExitStack() as stack:
                budget, what = self._lease.budget, "the states of recurrent layers"
                lent = ledger.borrowed(budget, num_bytes, what, "lower --ctx")
                stack.enter_context(lent).grow(num_bytes)
                sequence.free_snapshot = stack.pop_all().close
        context.take_snapshot(sequence.number)

    def save_kv(self, path: str | Path) -> int:
        """Write what the model holds of the text of the call that ended last, its keys and values,
        to a file, whole or not at all; return the number of its tokens. Raises PromptError where
        llama.cpp keeps no such text whole, StorageError."""
        return self._loop.save_kv(Path(path))

    def load_kv(self, path: str | Path) -> int:
        """Hold the text again that `save_kv` wrote, with the same bits, so that a prompt that
        begins with it is computed from there; return the number of its tokens. Raises PromptError
        if it was computed with another model or with other settings that decide its bits, or does
        not fit, StorageError if it is damaged."""
        return self._loop.load_kv(Path(path))

    # ------------------------------------------------------------------ state
    def resize(self, ram: str | int) -> None:
        """Take at most `ram` from now on, as `edge.load` understands it: a model that streams its
        experts gets more slots, or gives the memory of the last ones back to the system. Calls that
        run go on between two passes, and their text stays the same. Raises BudgetError below the
        floor or beyond a shared budget, HaversackError for a model that streams nothing, UnitError,
        ClosedError."""
        ram_bytes = size_bytes(ram)

        def change(engine: Engine) -> None:
            planned = resized(self.plan, ram_bytes)
            resize(engine, self._lease, planned)
            self.plan = self._loop.figures.plan = planned

        self._loop.between_passes(change)

    def speculate(self, how: str) -> None:
        """Draft tokens as `how` says from now on, see `LoadOptions`, and forget what drafts came
        from. A model drafts only if the target was loaded with it. Raises PromptError,
        ClosedError."""
        asked, speculation = asked_for(how), self._loop.speculation
        if not (asked.is_off or self.plan.draft_bytes or speculation.why_never):
            raise PromptError("the model was loaded to draft nothing: no memory is set aside")
        self._loop.between_passes(lambda _: speculation.begin_anew(asked))

    def pass_counts(self) -> list[PassCount]:
        """Return how many passes of a token of each text there were, with the seconds that they
        took, by their number of rows; the first is that of one row right behind several."""
        return list(self._loop.speculation.passes)

    @property
    def vocab_size(self) -> int:
        """How many tokens there are: ids go from 0 to one less. Raises ClosedError."""
        return self._loop.beside(lambda engine: engine.model.vocabulary.num_tokens)

    @property
    def hidden_size(self) -> int:
        """How many numbers `embed` returns. Raises ClosedError."""
        return self._loop.beside(lambda engine: engine.model.hidden_size)

    def stats(self) -> Stats:
        """Totals since loading; those of its whole life once the model is closed. Raises
        ClosedError in a process forked from the one that loaded it."""
        self._loop.birthplace.check()
        with self._state:
            return self._last_stats or self._loop.figures.stats()

    def held_experts(self) -> dict[int, list[int]]:
        """By layer, for each routed expert: 4 if it lies on a device, else 2 if its whole copy is
        in memory, 1 if a low copy is, 3 if neither is and one is being read, else 0. Raises
        ClosedError."""

        def look(engine: Engine) -> dict[int, list[int]]:
            if engine.experts is not None:
                return engine.experts.held_copies()
            layers = self.plan.geometry.layers
            return {each.layer: [2] * each.num_experts for each in layers}

        return self._loop.beside(look)

    def watch_routing(self, watcher: Watcher | None, predict: Predict | None = None) -> None:
        """Have `watcher` told of every router's choice while the model runs: the layer, the ids
        (tokens, experts per token), which it may change in place, and their node in llama.cpp's
        graph, valid until it returns (`offload.routing.chosen_probabilities` takes it). What the
        model has computed so far is forgotten.

        Nothing is drafted meanwhile, and nothing prefetched but what `predict` says, if given:
        from a layer's number, the experts that it may choose for the token under way, the likeliest
        first. Raises HaversackError where no expert is streamed, as no router is looked at then,
        ClosedError."""

        def watch(engine: Engine) -> None:
            engine.watch(watcher, predict)
            self._loop.start_anew()
            self._loop.keep_on(None)  # a watcher may have changed what is computed
            self._loop.speculation.why_paused = "" if watcher is None else "routing is watched"

        self._loop.between_passes(watch)

    def watch_activations(
        self, watcher: ActivationWatcher, weight_watcher: WeightWatcher | None = None
    ) -> ActivationWatch:
        """Have `watcher` told of what the experts are multiplied with, and `weight_watcher` of the
        routers' weights of the experts that they choose, until the model is closed or its routing
        is watched; `error` of what is returned is the error that one of them raised, if any.
        Nothing is drafted meanwhile. What the model has computed so far is forgotten. Raises
        ClosedError."""

        def watch(engine: Engine) -> ActivationWatch:
            begun = engine.watch_activations(watcher, weight_watcher)
            self._loop.start_anew()
            self._loop.speculation.why_paused = "activations are watched"
            return begun

        return self._loop.between_passes(watch)

    def check_integrity(self) -> None:
        """Raise AssertionError unless our own books agree; for tests and the worried. Raises
        ClosedError."""

        def check(engine: Engine) -> None:
            self._loop.check_integrity()
            if engine.experts is not None:
                engine.experts.check_integrity()

        self._loop.between_passes(check)

    def on_close(self, callback: Callable[[], None]) -> None:
        """Have `callback` called when the model's memory is freed. Raises ClosedError."""
        self._loop.between_passes(lambda engine: engine.on_close(callback))

    def close(self) -> None:
        """Stop the calls that run and give all memory back to the system; may be called twice.
        Raises ClosedError if called from inside a call of this thread that runs.

        After Ctrl-C in a long text's tokenization that has not ended yet, a thread waits for it and
        frees the memory then. In a process forked from the one that loaded the model nothing
        happens.
        """
        if not self._loop.birthplace.is_here:
            return
        self._loop.refuse()
        with StopFlag().listening():
            self._loop.close(self._free_once)

    def _free_once(self) -> None:
        with self._state:
            if self._engine is None:
                return
            self._last_stats = self._last_stats or self._loop.figures.stats()  # if not interrupted
            if self._engine.model.vocabulary.tokenizer.is_busy:
                threading.Thread(target=self._free, args=[self._engine], daemon=True).start()
            else:
                self._free(self._engine)
            self._engine = None

    def _free(self, engine: Engine) -> None:
        for sequence in self._loop.sequences:
            sequence.drop_snapshot()
        engine.close()
        host.give_back_freed_memory()
        self._lease.close()
        self._devices.close()

    def __enter__(self) -> "Model":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    async def __aenter__(self) -> "Model":
        return self

    async def __aexit__(self, *_: object) -> None:
        await importlib.import_module("asyncio").to_thread(self.close)


def _whole(entries: list[Entry], limit_bytes: int) -> list[Entry]:
    """Return the entries, and what they leave free of the limit."""
    free_bytes = limit_bytes - sum(entry.reserved_bytes for entry in entries)
    return [*entries, Entry("free", free_bytes, 0)]


def _check_count(name: str, value: object) -> None:
    if not isinstance(value, Integral) or value < 0:
        raise PromptError(f"{name} is {value!r}: give a whole number, 0 or more")


def _chosen(sampling: Sampling | None, settings: Mapping[str, Any]) -> Sampling:
    known = [field.name for field in fields(Sampling)]
    for name in settings:
        if name not in known:
            raise PromptError(f'no setting is called "{name}": give one of {", ".join(known)}')
    if not isinstance(sampling, Sampling | None):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise PromptError(f"sampling is {sampling!r}: give a Sampling")
    return replace(sampling or Sampling(), **settings)
