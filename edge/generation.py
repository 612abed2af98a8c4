"""A generation: pieces of text that the engine's loop computes."""

import contextlib
import weakref
from collections.abc import Callable, Sequence

from haversack.devices.errors import CancelledError, ContextError, HaversackError, NotFiniteError
from haversack.devices.interrupts import StopFlag
from haversack.devices.offers import Offer
from haversack.devices.sampler import SamplerChain, SamplerTables
from haversack.devices.steps import Ahead, Steps
from haversack.devices.vocabulary import Vocabulary
from haversack.edge.call import Call
from haversack.edge.logprobs import TokenLogprobs, token_logprobs
from haversack.edge.loop import EngineLoop
from haversack.edge.model_plan import Plan
from haversack.edge.pieces import Pieces
from haversack.edge.sampling import Sampling
from haversack.edge.sequence import Logits
from haversack.edge.stats import Stats
from haversack.edge.text import TextStream
from haversack.quant.gguf import hole_in


def sampler_chain(
    sampling: Sampling,
    ctx_tokens: int,
    vocabulary: Vocabulary,
    seed: int,
    tables: SamplerTables | None = None,
) -> SamplerChain:
    """The grammar and llama.cpp's samplers, in llama.cpp's order, for these settings."""
    chain = SamplerChain(vocabulary, tables)
    try:
        _add_samplers(chain, sampling, ctx_tokens, seed)
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


class GenerationCall(Call):
    """Goes on from a prompt: each result is a token (None: there was none) and what it adds to the
    text. The thread that drives chooses the tokens."""

    most_results = 4  # so that passes stay wide while other readers are slow

    def __init__(
        self,
        prompt: Sequence[int],
        max_tokens: int,
        sampling: Sampling,
        planned: Plan,
        may_vary: bool = False,
    ) -> None:
        """`may_vary`: nobody asked for a text that is the same each time."""
        super().__init__(prompt, len(prompt))
        self._may_vary = may_vary
        self._max_tokens, self._sampling, self._plan = max_tokens, sampling, planned
        self.prompt_length, self._num_forgotten = len(prompt), 0
        self.stream = TextStream(sampling.stop)
        self.is_repeatable = sampling.seed >= 0
        self.finish_reason: str | None = None  # known before the reader has taken all
        self.logprobs = list[TokenLogprobs]()  # of each token of the text, if they are wanted
        self._chain: SamplerChain | None = None
        self._vocabulary: Vocabulary | None = None

    @property
    def has_sampler(self) -> bool:
        """Whether `prepare` was called."""
        return self._chain is not None or self.has_ended

    def prepare(self, vocabulary: Vocabulary, seed: int, tables: SamplerTables) -> None:
        """Make the sampler, which may take a while: a grammar is compiled. Raises PromptError,
        ContextError."""
        ctx_tokens = self._plan.shape.ctx_tokens
        if self.num_batched > ctx_tokens:
            raise ContextError(
                f"the prompt has {self.num_batched} tokens, the context holds {ctx_tokens}: shorten"
                " it or raise --ctx"
            )
        stop_texts = self._sampling.stop
        specials = set[str]().union(*map(vocabulary.special_texts, stop_texts))
        self.stream, self._vocabulary = TextStream(stop_texts, specials), vocabulary
        self._chain = sampler_chain(self._sampling, ctx_tokens, vocabulary, seed, tables)
        self._chain.follow(self.tokens)

    @property
    def _num_generated(self) -> int:
        return len(self.tokens) + self._num_forgotten - self.prompt_length

    @property
    def most_drafted(self) -> int:
        """As `Call.most_drafted`; 0 while older tokens are computed again."""
        if not self.lacks_last_alone:
            return 0
        left = self._max_tokens - self._num_generated - 1
        return min(left, self._plan.shape.ctx_tokens - len(self.tokens))

    @property
    def takes_offers(self) -> bool:
        return self._may_vary and not self._sampling.greedy

    def offer(self, logits: Logits) -> Offer:
        assert self._chain is not None
        return self._chain.offer(logits)

    def take(self, logits: Logits) -> None:
        if self._num_generated == self._max_tokens:  # none is wanted
            self._finish("length")
            return
        assert self._chain is not None and self._vocabulary is not None
        token, num_likeliest = self._sampled(self._chain, logits), self._sampling.logprobs
        if num_likeliest is not None and not self._vocabulary.ends(token):
            self.logprobs.append(token_logprobs(logits, token, num_likeliest))
        if self.notes is not None:
            self.notes.note(logits, token)
        self._take_token(token)

    def ahead(self, most: int) -> Ahead | None:
        assert self._chain is not None and self.sequence is not None
        looks = self._sampling.stop or self._sampling.logprobs is not None
        if looks or not self._chain.takes_likeliest or not self.sequence.drops_parts:
            return None
        left = self.most_drafted
        return Ahead(min(most, 1 + left)) if left > 0 else None

    def take_steps(self, steps: Steps, logits: Callable[[], Logits]) -> Sequence[int]:
        *others, last = steps.likeliest
        for token in others:
            self._take_token(token)
        if last < 0:
            self.take(logits())  # raises the error of logits that are not finite
        else:
            self._take_token(last)
        return others

    def _take_token(self, token: int) -> None:
        chain, vocabulary = self._chain, self._vocabulary
        assert chain is not None and vocabulary is not None
        if vocabulary.ends(token):
            self._finish("stop")
            return
        self.tokens.append(token)
        self.results.append((token, self.stream.push(*self._token_text(vocabulary, token))))
        if self.stream.stopped is not None or chain.finished:
            self._finish("stop")
        elif self._num_generated == self._max_tokens:
            self._finish("length")
        elif len(self.tokens) > self._plan.shape.ctx_tokens:
            self._forget_oldest()

    def _forget_oldest(self) -> None:
        """Go on from the first tokens and the recent ones, a half of the others, which are computed
        anew at their new positions; or end, if that is not wanted."""
        first = min(self._sampling.keep_first, self._plan.shape.ctx_tokens // 2)
        recent = (self._plan.shape.ctx_tokens - first) // 2
        if not first or not recent:
            self._finish("context")
            return
        num_forgotten = len(self.tokens) - first - recent
        del self.tokens[first : first + num_forgotten]
        self._num_forgotten += num_forgotten
        self.num_batched = len(self.tokens)
        self.has_begun, self.is_windowed = False, True
        self.drop_drafter()

    def _finish(self, reason: str) -> None:
        self.finish_reason = reason
        rest = self.stream.finish()
        if rest:
            self.results.append((None, rest))
        self.end()

    def _sampled(self, chain: SamplerChain, logits: Logits) -> int:
        """The next token. Raises NotFiniteError, which names a hole in the file if it has one."""
        try:
            return chain.sample(logits, self.offers.popleft() if self.offers else None)
        except NotFiniteError as error:
            hole = None
            with contextlib.suppress(HaversackError):  # the file may be gone by now
                hole = hole_in(self._plan.geometry)
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
            name = vocabulary.piece(token, special=True)
            text = name.decode(errors="replace")
            return (name, "") if text in self._sampling.marks else (b"", text)
        if self._num_generated == 1 and vocabulary.adds_space:
            free = self._sampling.constraint() is None
            if free and not any(map(vocabulary.piece, self.tokens[: self.prompt_length])):
                return piece.removeprefix(b" "), ""
        return piece, ""

    def cancel(self) -> None:
        """End it early. Its sequence keeps what was read of its text."""
        super().cancel()
        unread = sum(token is not None for token, _ in self.results)
        if unread and self.sequence is not None and self.sequence.drops_parts:
            self.sequence.keep(max(self.num_batched, len(self.sequence.tokens) - unread))

    def close(self) -> None:
        super().close()
        if self._chain is not None:
            self._chain.close()
            self._chain = None


class Generation(Pieces):
    """Text as it is generated in this process. One that is dropped lets go of the model, as `close`
    does."""

    def __init__(
        self, call: GenerationCall, loop: EngineLoop, seed: int, tables: SamplerTables
    ) -> None:
        super().__init__()
        self._call, self._loop = call, loop
        call.owner = weakref.ref(self)  # no cycle keeps a generation alive that was dropped
        self._seed, self._tables = seed, tables
        self._tokens: list[int] = []
        self._finish_reason: str | None = None
        self._is_over = False

    @property
    def prompt_tokens(self) -> int:
        """The number of the prompt's tokens."""
        return self._call.prompt_length

    @property
    def new_tokens(self) -> int:
        """How many of the prompt's tokens are to be computed, at most, if it begins where the
        latest text ended: those that the model does not hold. Another sequence, or a copy on disk,
        may hold more."""
        return self.prompt_tokens - self._call.num_begun(self._loop.latest)

    @property
    def tokens(self) -> list[int]:
        """The ids generated so far."""
        return self._tokens

    @property
    def logprobs(self) -> list[TokenLogprobs]:
        """Those of each of `tokens`, if `Sampling.logprobs` asked for them."""
        return self._call.logprobs[: len(self._tokens)]

    @property
    def finish_reason(self) -> str | None:
        if self._finish_reason is None and isinstance(self._call.error, CancelledError):
            return "cancelled"  # the model was closed
        return self._finish_reason

    @property
    def stopped_by(self) -> str | None:
        """The stop string that ended it, if one did."""
        return self._call.stream.stopped if self._is_over else None

    @property
    def stats(self) -> Stats | None:
        """What it took, once it has ended."""
        return self._call.stats if self._is_over else None

    def _read(self) -> str:
        self._loop.birthplace.check()
        text = ""
        with self._call.stop.listening():
            while not text and not self._is_over:
                text = self._step()
            self._shown.append(text)
        return text

    def _step(self) -> str:
        """What the next token adds to the text. Sets `_is_over` if there is none."""
        call = self._call
        try:
            if not call.has_sampler:
                self._prepare()
            if not call.results:
                self._loop.advance(call)
            if call.stop.requested:
                raise CancelledError("the generation was cancelled")
        except CancelledError:
            rest = "" if call.results else call.stream.finish()
            self._end("cancelled")
            return rest
        except BaseException:
            self._end(None)
            raise
        if not call.results:
            self._end(call.finish_reason)
            return ""
        token, text = call.results.popleft()
        if token is not None:
            self._tokens.append(token)
        if call.has_ended and not call.results and call.error is None:
            self._end(call.finish_reason)
        return str(text)

    def _prepare(self) -> None:
        if self._call.stop.requested:
            raise CancelledError("the generation was cancelled before it began")
        self._loop.beside(
            lambda engine: self._call.prepare(engine.model.vocabulary, self._seed, self._tables)
        )

    def _end(self, reason: str | None) -> None:
        self._is_over, self._finish_reason = True, reason
        self._loop.leave(self._call)

    def cancel(self) -> None:
        self._call.stop.request()

    def close(self) -> None:
        self.cancel()
        with StopFlag().listening():
            self._loop.leave(self._call)
        self._is_over = True
        self._finish_reason = self._finish_reason or "cancelled"
