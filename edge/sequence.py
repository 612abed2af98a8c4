"""A sequence: one text in the context."""

from collections.abc import Callable, Sequence
from itertools import takewhile

import numpy as np
import numpy.typing as npt

from haversack.devices.errors import ContextError, PromptError
from haversack.devices.llama import LlamaContext

Logits = npt.NDArray[np.float32]


class TokenSequence:
    """The tokens that the context holds under `number`.

    The logits after a prompt are kept: the same prompt, asked again, costs nothing and has the same
    bits.

    The bits of a prompt's token depend on the tokens that are computed in one batch with it. So
    `num_repeatable` tells how much was computed as a new context would compute it.
    """

    def __init__(self, number: int, context: LlamaContext) -> None:
        self.number = number
        self.tokens: list[int] = []
        self.last_used = 0  # the number of the latest call that took it
        self.free_snapshot: Callable[[], None] | None = None
        self._context = context
        self._kept: Logits | None = None
        self._kept_tokens = 0
        self._batch_ends: list[int] = []  # of those that a new context would compute too

    @property
    def context(self) -> LlamaContext:
        """The context that holds it."""
        return self._context

    @property
    def batch_ends(self) -> Sequence[int]:
        """How many tokens it had after each batch that a new context would compute too."""
        return self._batch_ends

    @property
    def drops_parts(self) -> bool:
        """Whether it can lose its last tokens alone."""
        return self._context.drops_parts

    def num_shared(self, tokens: Sequence[int]) -> int:
        """How many of its first tokens are also the first of `tokens` and can be kept."""
        pairs = zip(self.tokens, tokens, strict=False)
        same = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
        return same if same == len(self.tokens) or self.drops_parts else 0

    def num_repeatable(self, prompt: Sequence[int], most: int | None = None) -> int:
        """As `num_shared`, but only as far as a new context would compute `prompt` with the same
        bits, and at most `most`."""
        shared, whole = self.num_shared(prompt), self._context.batch_tokens
        shared = shared if most is None else min(shared, most)
        ends = [end for end in self._batch_ends if end % whole == 0 or end == len(prompt)]
        found = max((end for end in ends if end <= shared), default=0)
        return found if found == len(self.tokens) or self.drops_parts else 0

    def note_batch(self, num_tokens: int) -> None:
        """Its last `num_tokens` tokens were computed as a batch of a prompt."""
        begin = len(self.tokens) - num_tokens
        last = self._batch_ends[-1] if self._batch_ends else 0
        if begin == last and begin % self._context.batch_tokens == 0:
            self._batch_ends.append(len(self.tokens))

    def adopt(self, tokens: Sequence[int], batch_ends: Sequence[int]) -> None:
        """Note that its context holds `tokens` of it now, computed in batches with these ends."""
        self.tokens[:], self._batch_ends[:] = tokens, batch_ends
        self._kept_tokens = 0

    def copy(self, source: "TokenSequence") -> None:
        """Hold what `source` holds, with the same bits and the logits kept of it, in place of what
        it held."""
        self.keep(0)
        self._context.copy(source.number, self.number)
        self.adopt(source.tokens, source.batch_ends)
        if source._kept is not None and source._kept_tokens:
            self.keep_logits(source._kept)
            self._kept_tokens = source._kept_tokens

    def keep(self, num_tokens: int) -> None:
        """Drop all but its first `num_tokens` tokens. A model that cannot drop a part goes back to
        its snapshot, or drops all."""
        try:
            # Also where nothing is dropped: a pass that was cut short may have left more tokens.
            self._context.forget(num_tokens, self.number)
        finally:  # the book of tokens never says more than the context holds
            del self.tokens[self._context.num_tokens(self.number) :]
            held = len(self.tokens)
            self._kept_tokens = self._kept_tokens if self._kept_tokens <= held else 0
            self._batch_ends = [end for end in self._batch_ends if end <= held]

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
        self._batch_ends.clear()
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
