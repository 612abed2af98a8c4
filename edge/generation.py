"""A generation: an iterator of text that can be cancelled."""

import contextlib
import threading
import weakref
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from typing import Protocol

from haversack.devices.errors import (
    CancelledError,
    ClosedError,
    HaversackError,
    NotFiniteError,
)
from haversack.devices.forks import Birthplace
from haversack.devices.interrupts import StopFlag
from haversack.devices.llama import LlamaContext
from haversack.devices.sampler import SamplerChain
from haversack.devices.vocabulary import Vocabulary
from haversack.edge.decode import Decoder
from haversack.edge.sampling import Sampling
from haversack.edge.stats import Stats
from haversack.edge.text import TextStream
from haversack.quant.gguf import hole_in

_LOOK_S = 0.1  # how often a call that waits for its turn looks whether it is cancelled


def sampler_chain(
    sampling: Sampling, context: LlamaContext, vocabulary: Vocabulary, seed: int
) -> SamplerChain:
    """The grammar and llama.cpp's samplers, in llama.cpp's order, for these settings."""
    chain = SamplerChain(vocabulary)
    try:
        _add_samplers(chain, sampling, context.ctx_tokens, seed)
    except BaseException:
        chain.close()
        raise
    return chain


def _add_samplers(chain: SamplerChain, sampling: Sampling, ctx_tokens: int, seed: int) -> None:
    grammar = sampling.constraint()
    if grammar is not None:
        chain.add_grammar(grammar)
    last_n = sampling.repeat_last_n
    chain.add_penalties(
        ctx_tokens if last_n == -1 else min(last_n, ctx_tokens),
        sampling.repeat_penalty,
        sampling.frequency_penalty,
        sampling.presence_penalty,
    )
    if sampling.greedy:
        chain.add_greedy()
        return
    chain.add_top_k(sampling.top_k)
    chain.add_top_p(sampling.top_p)
    chain.add_min_p(sampling.min_p)
    chain.add_temperature(sampling.temperature)
    chain.add_random(seed)


class Closable(Protocol):
    """A call in steps, such as a generator."""

    def close(self) -> None:
        """End it."""
        ...


class CallGate:
    """Lets one call after the other use a model; calls of other threads wait their turn."""

    def __init__(self) -> None:
        self.birthplace = Birthplace()
        self._lock = threading.Lock()  # held by the call that runs
        self._life = threading.Lock()  # held while the model is used beside it, and freed
        self._closed = False
        self._owner: int | None = None
        self._call: Callable[[], Closable | None] | None = None

    def check_open(self) -> None:
        """Raises ClosedError if the model is closed, or was loaded in a parent of this process."""
        self.birthplace.check()
        if self._closed:
            raise ClosedError("the model is closed: load it again")

    @contextmanager
    def beside(self) -> Iterator[None]:
        """Use what needs no turn (the vocabulary) without the model being freed meanwhile.
        Raises ClosedError."""
        self.birthplace.check()  # in a child, whoever holds the lock is not there
        with self._life:
            self.check_open()
            yield

    @contextmanager
    def entered(
        self, stop: StopFlag, call: Callable[[], Closable | None] | None = None
    ) -> Iterator[None]:
        """Hold the model; `call` is a weak reference to what holds it in steps. Raises
        ClosedError if the model is closed, or held by this same thread; CancelledError if `stop`
        is set while it waits for its turn."""
        self.check_open()
        if self._owner == threading.get_ident():
            raise ClosedError(
                "this thread has a generation that is not finished: read it to its end, or"
                " close() it first"
            )
        held = False
        try:
            with stop.listening():  # Ctrl-C must not come between these two
                self._wait_for_turn(stop)
                held = True
            self.check_open()
            self._owner, self._call = threading.get_ident(), call
            yield
        finally:
            if held:
                self._owner = self._call = None
                self._lock.release()

    def _wait_for_turn(self, stop: StopFlag) -> None:
        while not self._lock.acquire(timeout=_LOOK_S):
            if stop.requested:
                raise CancelledError("the call was cancelled before its turn came")

    def refuse(self) -> None:
        """From now on the model is closed to new calls."""
        self._closed = True

    @contextmanager
    def closing(self) -> Iterator[None]:
        """Hold the model for the last time: end a call that waits between two steps, whoever made
        it, and wait for one that runs. Raises ClosedError if it runs in this very thread."""
        call = self._call() if self._call is not None else None
        if call is not None:
            with contextlib.suppress(ValueError):  # it runs: it was asked to stop
                call.close()
        if self._owner == threading.get_ident():
            raise ClosedError("a call of this thread is still running: close() again after it")
        with self._lock, self._life:
            yield


class Generation:
    """Text as it is generated: iterate over it, or take `text` when it is done.

    Dropping it lets go of the model at once, as `close` does.
    """

    def __init__(self, request: "Request") -> None:
        self._request = request
        request.generation = weakref.ref(self)
        self._pieces = request.pieces()  # knows the request and not us: no cycle keeps it alive
        self._shown: list[str] = []

    @property
    def prompt_tokens(self) -> int:
        """The number of the prompt's tokens."""
        return len(self._request.prompt)

    @property
    def tokens(self) -> list[int]:
        """The ids generated so far."""
        return self._request.tokens

    @property
    def finish_reason(self) -> str | None:
        """ "stop" (the model ended, or a stop string came), "length" (`max_tokens`), "context"
        (the context is full) or "cancelled"; None while it runs."""
        return self._request.finish_reason

    @property
    def stats(self) -> Stats | None:
        """What it took, once it has ended."""
        return self._request.stats

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        self._request.gate.birthplace.check()
        try:
            with self._request.stop.listening():
                piece = next(self._pieces)
                self._shown.append(piece)
        except KeyboardInterrupt:
            self.close()  # whoever keeps the traceback keeps this, and would hold the model
            raise
        return piece

    @property
    def text(self) -> str:
        """All text; reads the generation to its end first."""
        if self.finish_reason is None:
            for _ in self:
                pass
        return "".join(self._shown)

    def cancel(self) -> None:
        """End it as soon as possible, from any thread or signal handler; iteration then stops."""
        self._request.stop.request()

    def close(self) -> None:
        """Let go of the model without reading on; may be called twice."""
        self.cancel()
        with StopFlag().listening(), contextlib.suppress(ValueError):
            self._pieces.close()  # ValueError: another thread runs it, and will stop soon
        self._request.finish_reason = self.finish_reason or "cancelled"


class Request:
    """What a generation is to do and has done: the side of it that works."""

    def __init__(
        self,
        decoder: Decoder,
        gate: CallGate,
        prompt: Sequence[int],
        max_tokens: int,
        sampling: Sampling,
        seed: int,
    ) -> None:
        self.prompt = list(prompt)
        self.tokens: list[int] = []
        self.finish_reason: str | None = None
        self.stats: Stats | None = None
        self.generation: weakref.ref[Generation] | None = None
        self._decoder, self.gate = decoder, gate
        self._max_tokens, self._sampling, self._seed = max_tokens, sampling, seed
        self._stream = TextStream(sampling.stop)
        self.stop = StopFlag()  # this call's own: a late request cannot reach the next one

    def pieces(self) -> Generator[str, None, None]:
        """The text in pieces, as they are generated."""
        try:
            with self.gate.entered(self.stop, self.generation), self._counted():
                yield from self._run()
        except CancelledError:
            self.finish_reason = "cancelled"
        rest = self._stream.finish()
        if rest:
            yield rest

    def _run(self) -> Iterator[str]:
        engine, stop_texts = self._decoder.engine, self._sampling.stop
        engine.stop.clear(self.stop)
        self.gate.check_open()  # after it: close() asks to stop once the gate is closed
        vocabulary = engine.model.vocabulary
        specials = set[str]().union(*map(vocabulary.special_texts, stop_texts))
        self._stream = TextStream(stop_texts, specials)
        chain = sampler_chain(self._sampling, engine.context, vocabulary, self._seed)
        try:
            yield from self._steps(chain, self._stream)
        finally:
            chain.close()

    def _steps(self, chain: SamplerChain, stream: TextStream) -> Iterator[str]:
        decoder, vocabulary = self._decoder, self._decoder.engine.model.vocabulary
        self._raise_if_cancelled()
        decoder.prefill(self.prompt)
        chain.follow(self.prompt)
        while len(self.tokens) < self._max_tokens:
            self._raise_if_cancelled()
            token = self._sampled(chain)
            if vocabulary.ends(token):
                self.finish_reason = "stop"
                return
            self.tokens.append(token)
            text = stream.push(*self._token_text(vocabulary, token))
            if text:
                yield text
            if stream.stopped is not None or chain.finished:
                self.finish_reason = "stop"
                return
            if len(self.tokens) < self._max_tokens:
                if decoder.is_full:
                    self.finish_reason = "context"
                    return
                decoder.step(token)
        self.finish_reason = "length"

    def _sampled(self, chain: SamplerChain) -> int:
        """The next token. Raises NotFiniteError, which names a hole in the file if it has one."""
        try:
            return chain.sample(self._decoder.engine.context)
        except NotFiniteError as error:
            hole = None
            with contextlib.suppress(HaversackError):  # the file may be gone by now
                hole = hole_in(self._decoder.geometry)
            if hole is None:
                raise
            raise NotFiniteError(f"{hole}, and {error}") from error

    def _token_text(self, vocabulary: Vocabulary, token: int) -> tuple[bytes, str]:
        """What the latest token adds to the text, and the name of a special token, which adds
        nothing. Without a vocabulary: its id and a space.

        Where nothing stands before it, not even a prompt, the space that some vocabularies put
        before every text is none of the text, unless a grammar asks for it.
        """
        if not vocabulary.has_text:
            return f"{token} ".encode(), ""
        piece = vocabulary.piece(token)
        if not piece:
            return b"", vocabulary.piece(token, special=True).decode(errors="replace")
        free = self._sampling.constraint() is None
        if len(self.tokens) == 1 and vocabulary.adds_space and free:
            if not any(map(vocabulary.piece, self.prompt)):
                return piece.removeprefix(b" "), ""
        return piece, ""

    def _raise_if_cancelled(self) -> None:
        if self._decoder.engine.stop.requested:
            raise CancelledError("the generation was cancelled")

    @contextmanager
    def _counted(self) -> Iterator[None]:
        before = self._decoder.stats()
        try:
            yield
        finally:
            self.stats = self._decoder.stats().since(before)
