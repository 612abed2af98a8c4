"""A sequence: one text in the context. A call: what somebody wants computed of a sequence."""

import weakref
from collections import deque
from collections.abc import Callable, Sequence
from itertools import takewhile
from typing import Any

import numpy as np
import numpy.typing as npt

from haversack.devices.errors import CancelledError, ContextError, PromptError
from haversack.devices.interrupts import StopFlag
from haversack.devices.llama import MOST_ROWS, LlamaContext
from haversack.edge.stats import Stats

Logits = npt.NDArray[np.float32]


class TokenSequence:
    """The tokens that the context holds under `number`, and the call that uses them now.

    The logits after a prompt are kept: the same prompt, asked again, costs nothing and has the same
    bits.
    """

    def __init__(self, number: int, context: LlamaContext) -> None:
        self.number = number
        self.tokens: list[int] = []
        self.call: Call | None = None
        self.last_used = 0  # the number of the latest call that took it
        self.free_snapshot: Callable[[], None] | None = None
        self._context = context
        self._kept: Logits | None = None
        self._kept_tokens = 0

    def num_shared(self, tokens: Sequence[int]) -> int:
        """How many of its first tokens are also the first of `tokens` and can be kept."""
        pairs = zip(self.tokens, tokens, strict=False)
        same = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
        return same if same == len(self.tokens) or self._context.drops_parts else 0

    def keep(self, num_tokens: int) -> None:
        """Drop all but its first `num_tokens` tokens. A model that cannot drop a part goes back to
        its snapshot, or drops all."""
        try:
            # Also where nothing is dropped: a pass that was cut short may have left more tokens.
            self._context.forget(num_tokens, self.number)
        finally:  # the book of tokens never says more than the context holds
            del self.tokens[self._context.num_tokens(self.number) :]
            if self._kept_tokens > len(self.tokens):
                self._kept_tokens = 0

    def check_change(self, num_dropped: int, num_new: int) -> None:
        """Raises PromptError if its last `num_dropped` tokens cannot be dropped alone, ContextError
        if there is no room for `num_new` more."""
        held, ctx_tokens = len(self.tokens), self._context.ctx_tokens
        if held + num_new > ctx_tokens:
            raise ContextError(
                f"{held} tokens are held and {num_new} come, the context holds {ctx_tokens}: raise"
                " --ctx"
            )
        if num_dropped > held:
            raise PromptError(f"num_tokens is {num_dropped}: the sequence has {held}")
        if not self._context.can_forget(held - num_dropped, self.number):
            raise PromptError(
                f"this model has recurrent layers, which cannot forget {num_dropped} tokens: rewind"
                " at most those of the latest verify(), or compute the prompt again"
            )

    def reset(self, context: LlamaContext) -> None:
        """Go on empty in a new context."""
        self._context, self._kept_tokens = context, 0
        self.tokens.clear()
        self.drop_snapshot()

    def keep_logits(self, logits: Logits) -> None:
        """Keep a copy of the logits after its last token."""
        if self._kept is None:
            self._kept = logits.copy()
        else:
            self._kept[:] = logits
        self._kept_tokens = len(self.tokens)

    def kept_logits(self, tokens: Sequence[int]) -> Logits | None:
        """The logits after `tokens`, if they were kept."""
        if self._kept_tokens != len(tokens) or self.tokens[: len(tokens)] != tokens:
            return None
        return self._kept

    def drop_snapshot(self) -> None:
        """Give the memory of its snapshot back, if there is one."""
        if self.free_snapshot is not None:
            self._context.drop_snapshot(self.number)
            self.free_snapshot()
            self.free_snapshot = None


class Call:
    """What somebody wants computed: a sequence that holds `tokens`, the first `num_batched` of them
    computed in batches and the others a row at a time.

    A thread at a time drives the engine for all calls (see `EngineLoop`) and appends to `results`,
    which the call's reader takes. Its memory may be lost at any time between two passes: what is to
    be computed next follows from `tokens` and from what the sequence holds.
    """

    most_results = 1  # computed before the reader takes one
    takes_every_row = False  # the logits of a pass's last row alone are wanted

    def __init__(self, tokens: Sequence[int], num_batched: int) -> None:
        self.tokens, self.num_batched = list(tokens), num_batched
        self.stop = StopFlag()  # this call's own: a late request cannot reach the next one
        self.sequence: TokenSequence | None = None
        self.results = deque[Any]()
        self.has_begun = self.has_ended = self.is_read = False
        self.error: BaseException | None = None
        self.owner: weakref.ref[Any] | None = None  # what reads it, if that may be dropped
        self.reader = 0  # the thread that asked last
        self.left_s = 0.0  # when it went away with a result
        self.stats: Stats | None = None
        self.before: Stats | None = None
        self.prompt_tokens = self.decoded_tokens = 0
        self.prefill_s = self.decode_s = 0.0

    @property
    def is_ready(self) -> bool:
        """Whether there is something for the reader."""
        return bool(self.results) or self.has_ended

    @property
    def is_over(self) -> bool:
        """Whether nothing is to be done for it any more: it has ended, was cancelled or dropped."""
        dropped = self.owner is not None and self.owner() is None
        return self.has_ended or self.stop.requested or dropped

    @property
    def wants_pass(self) -> bool:
        """Whether a pass is to be computed for it, now or ahead of its reader."""
        return not self.has_ended and len(self.results) < self.most_results

    @property
    def needs_batch(self) -> bool:
        """Whether its next pass is a batch, which no other call shares."""
        assert self.sequence is not None
        return len(self.sequence.tokens) < self.num_batched

    def due(self, most_tokens: int) -> Sequence[int]:
        """The tokens of its next pass, at most `most_tokens`."""
        assert self.sequence is not None
        held = len(self.sequence.tokens)
        behind = min(held + most_tokens, self.num_batched) if self.needs_batch else held + 1
        return self.tokens[held:behind]

    def begin(self) -> None:
        """Have its sequence keep what it can use. The last token is computed again, for its logits,
        unless they were kept."""
        assert self.sequence is not None
        logits = self.sequence.kept_logits(self.tokens)
        shared = self.sequence.num_shared(self.tokens)
        self.sequence.keep(min(shared, len(self.tokens) - (logits is None)))
        self.sequence.drop_snapshot()
        if logits is not None and len(self.sequence.tokens) == len(self.tokens):
            self.take(logits)

    def takes(self, position: int) -> bool:
        """Whether the logits after the token at `position` are news."""
        return position + 1 == len(self.tokens)

    def take(self, logits: Logits) -> None:
        """Take the logits after its last token, valid until this returns: append to `results`, say
        which token comes next, or end."""
        raise NotImplementedError

    def computed(self) -> None:
        """A pass for it was computed, and its logits taken."""

    def end(self, error: BaseException | None = None) -> None:
        """No pass is computed for it any more; `error` says why, if it failed."""
        self.error, self.has_ended = self.error or error, True

    def cancel(self) -> None:
        """End it early."""
        self.end(CancelledError("the call was cancelled"))

    def close(self) -> None:
        """Free what it holds beside its sequence; called once it has ended."""


class LogitsCall(Call):
    """Computes the logits after the first `prefill` of `tokens`, and after each other one."""

    def __init__(self, tokens: Sequence[int], prefill: int) -> None:
        super().__init__(tokens[:prefill], prefill)
        self._rest = deque(tokens[prefill:])

    def begin(self) -> None:
        assert self.sequence is not None
        self.sequence.keep(0)  # so that the logits do not depend on what was there

    def take(self, logits: Logits) -> None:
        self.results.append(logits.copy())
        if self._rest:
            self.tokens.append(self._rest.popleft())
        else:
            self.end()


class RowsCall(Call):
    """Drops the last `num_dropped` tokens of the sequence, then appends `tokens` and takes the
    logits after each: rows of one pass, each with the bits of a token alone.

    `prepare` is told the sequence before anything is appended.
    """

    takes_every_row = True

    def __init__(
        self,
        tokens: Sequence[int],
        num_dropped: int = 0,
        prepare: Callable[[TokenSequence], None] = lambda _: None,
    ) -> None:
        super().__init__([], 0)
        self._new, self._num_dropped, self._prepare = list(tokens), num_dropped, prepare
        self._num_kept = 0

    @property
    def is_ready(self) -> bool:
        return self.has_ended

    @property
    def wants_pass(self) -> bool:
        return not self.has_ended

    @property
    def needs_batch(self) -> bool:
        return True

    def due(self, most_tokens: int) -> Sequence[int]:
        assert self.sequence is not None
        held = len(self.sequence.tokens)
        return self.tokens[held : held + min(MOST_ROWS, most_tokens)]

    def begin(self) -> None:
        assert self.sequence is not None
        self._num_kept = len(self.sequence.tokens) - self._num_dropped
        self.sequence.check_change(self._num_dropped, len(self._new))
        self.tokens = [*self.sequence.tokens[: self._num_kept], *self._new]
        if self._num_dropped:
            self.sequence.keep(self._num_kept)
        self._prepare(self.sequence)
        self.computed()

    def takes(self, position: int) -> bool:
        return position == self._num_kept + len(self.results)

    def take(self, logits: Logits) -> None:
        self.results.append(logits.copy())

    def computed(self) -> None:
        assert self.sequence is not None
        if len(self.sequence.tokens) == len(self.tokens):
            self.end()
