"""`load()` and the model it gives: generate, chat, logits, stats."""

import random
import sys
import weakref
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.resources import files
from operator import index
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt
import platformdirs

from haversack.devices.errors import (
    BudgetError,
    HaversackError,
    ModelFileError,
    PromptError,
)
from haversack.devices.interrupts import StopFlag
from haversack.devices.memory import anonymous_bytes
from haversack.devices.storage import DirectFile, known_speed
from haversack.devices.units import format_bytes
from haversack.edge.decode import Decoder
from haversack.edge.generation import CallGate, Closable, Generation, Request
from haversack.edge.planner import DEFAULT_BATCH_TOKENS, STREAMED, Plan, plan
from haversack.edge.sampling import MAX_SEED, Sampling
from haversack.edge.stats import Stats
from haversack.edge.templates import ChatTemplate
from haversack.edge.text import without_mark
from haversack.offload.engine import Engine, LoadHooks, open_resident, open_streamed
from haversack.offload.pool import PoolPlan, plan_pools, pools_bytes
from haversack.offload.seam import Forecast, Watcher
from haversack.offload.streamer import NUM_READERS, OpenFile
from haversack.quant.gguf import read_geometry
from haversack.quant.trunk import ensure_trunk

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
    ram: str | int | None = None,
    ctx: int | None = None,
    threads: int | None = None,
    seed: int | None = None,
    options: LoadOptions | None = None,
) -> "Model":
    """A model ready to generate, inside `ram` bytes of anonymous memory of this process.

    `model` is the path of a GGUF (any part of a split one) or a plan; with a plan, `ram`, `ctx`
    and `threads` must not be given. `ram` is a size ("6GiB") or bytes, see `plan`. `seed` makes
    all sampling repeatable. The first load of a model writes its trunk file into the cache.

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
        with stop.listening():  # Ctrl-C comes where a step has ended, and leaves nothing behind
            loaded.append(Model(planned, _open(planned, options, stop), seed))
    except KeyboardInterrupt:
        for found in loaded:
            found.close()
        raise
    return loaded[0]


def _open(planned: Plan, options: LoadOptions, stop: StopFlag) -> Engine:
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
    if planned.mode != STREAMED:
        return open_resident(planned.path, planned.shape, report("loading"))
    cache_dir = options.cache_dir or default_cache_dir()
    trunk = ensure_trunk(planned.geometry, cache_dir, report("writing the trunk"))
    speed = known_speed(planned.path, cache_dir)
    hooks = LoadHooks(
        report("loading"),
        options.open_file,
        NUM_READERS if speed is None else speed.enough_readers,
        options.native,
        options.warm_start,
    )
    return open_streamed(planned.geometry, trunk, planned.shape, lambda: _measured(planned), hooks)


def _measured(planned: Plan) -> Sequence[PoolPlan]:
    """The planned pools, or smaller ones where the process has already taken more than planned.

    Raises BudgetError if not even the floor is left.
    """
    taken_bytes = anonymous_bytes() + planned.kv_bytes + planned.compute_bytes
    left_bytes = planned.ram_bytes - taken_bytes
    if pools_bytes(planned.pools) <= left_bytes:
        return planned.pools
    geometry = planned.geometry
    pools = plan_pools(geometry.layers, geometry.num_experts_per_tok, left_bytes)
    if pools_bytes(pools) > left_bytes:
        raise BudgetError(
            f"the process holds {format_bytes(anonymous_bytes())} already, so the budget of"
            f" {format_bytes(planned.ram_bytes)} leaves {format_bytes(max(0, left_bytes))} for"
            f" experts, which need {format_bytes(pools_bytes(pools))}: raise --ram",
            need_bytes=taken_bytes + pools_bytes(pools),
            have_bytes=planned.ram_bytes,
        )
    return pools


class Model:
    """A loaded model. Use it in a `with` block, or `close` it.

    One call runs at a time: calls of other threads wait. After an error in a call (a disk that
    fails, say) the model stays usable.
    """

    def __init__(self, planned: Plan, engine: Engine, seed: int | None) -> None:
        self.plan = planned
        self._engine = engine
        self._decoder = Decoder(engine, planned)
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
        tokens = self.tokenize(without_mark(prompt) if isinstance(prompt, str) else prompt)
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
        return self.generate(self.tokenize(prompt), max_tokens, sampling, **settings)

    def chat_template(self) -> ChatTemplate:
        """The model file's chat template. Raises PromptError if it has none."""
        with self._gate.beside():
            source, vocabulary = self._engine.model.chat_template, self._engine.model.vocabulary
            bos, eos = vocabulary.bos, vocabulary.eos
        if source is None:
            raise PromptError(f"{self.plan.path.name} has no chat template: use run or generate()")
        return ChatTemplate(source, bos=bos, eos=eos)

    def tokenize(self, prompt: Prompt, add_special: bool = True) -> list[int]:
        """The ids of `prompt`. `add_special` puts the model's start token before a text that does
        not begin with it. Raises PromptError for ids outside the vocabulary, ClosedError."""
        vocabulary = self._engine.model.vocabulary
        if isinstance(prompt, str) and vocabulary.has_text:
            with self._gate.beside():
                return vocabulary.tokenize(_encodable(prompt), add_special=add_special)
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

    # ----------------------------------------------------------------- logits
    def logits(self, tokens: Sequence[int], prefill: int) -> npt.NDArray[np.float32]:
        """Logits (len(tokens) - prefill + 1, vocabulary) float32: after the first `prefill`
        tokens, computed in one batch, and after each of the others, computed one at a time.

        A `prefill` above the plan's batch takes several. Raises PromptError, ContextError,
        StorageError.
        """
        return np.stack(list(self.iter_logits(tokens, prefill)))

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
            self._engine.stop.clear(stop)
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
        """How many tokens there are: ids go from 0 to one less."""
        return self._engine.model.vocabulary.num_tokens

    def stats(self) -> Stats:
        """Totals since loading."""
        return self._decoder.stats()

    def watch_routing(self, watcher: Watcher | None, forecast: Forecast | None = None) -> None:
        """Have `watcher` told of every router's choice while the model runs: the layer, the ids
        (tokens, experts per token), which it may change in place, and their node in llama.cpp's
        graph, valid until it returns (`offload.predictor.chosen_probabilities` takes it).

        Nothing is read ahead meanwhile but what `forecast` says, if it is given: from a layer's
        number, the experts that it may choose for the token under way, the likeliest first. Raises
        HaversackError where no expert is streamed: nobody looks at the routers then."""
        if self._engine.seam is None:
            raise HaversackError("all experts are in memory and no router is watched: lower --ram")
        self._engine.seam.watch(watcher, forecast)

    def check_integrity(self) -> None:
        """Raise AssertionError unless our own books agree; for tests and the worried."""
        if self._engine.store is not None:
            self._engine.store.check_integrity()

    def close(self) -> None:
        """Stop a call that runs, free all memory; may be called twice. Raises ClosedError if
        called from inside a call of this thread that runs."""
        self._gate.refuse()
        self._engine.stop.request()
        with StopFlag().listening(), self._gate.closing():
            self._engine.close()

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
