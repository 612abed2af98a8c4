"""A call: what somebody wants computed of a sequence."""

import weakref
from collections import deque
from collections.abc import Callable, Sequence
from itertools import islice
from typing import Any, Protocol

import numpy as np

from haversack.cache.ngram import Drafter
from haversack.devices.errors import CancelledError
from haversack.devices.interrupts import StopFlag
from haversack.devices.llama import MOST_ROWS, Row
from haversack.devices.offers import Offer
from haversack.devices.steps import Ahead, Steps
from haversack.edge.sequence import Logits, TokenSequence
from haversack.edge.stats import Stats


class TextNotes(Protocol):
    """Takes note of how a text goes on."""

    def note(self, logits: Logits, token: int) -> None:
        """`token` was chosen by `logits`."""
        ...

    def close(self) -> None:
        """The text has ended."""
        ...


class Call:
    """What somebody wants computed: a sequence that holds `tokens`, the first `num_batched` of them
    computed in batches and the others a row at a time.

    A thread at a time drives the engine for all calls (see `EngineLoop`) and appends to `results`,
    which the call's reader takes. Its memory may be lost at any time between two passes: what is to
    be computed next follows from `tokens` and from what the sequence holds.
    """

    most_results = 1  # computed before the reader takes one
    takes_every_row = False  # the logits of a pass's last row alone are wanted
    begins_anew = False  # its logits must not depend on what its sequence held
    takes_copies = True  # of tokens that another sequence holds
    wants_hidden = False  # it takes what the last layer computed in place of logits
    is_repeatable = False  # its bits must not depend on what was computed before it

    def __init__(self, tokens: Sequence[int], num_batched: int) -> None:
        self.tokens, self.num_batched = list(tokens), num_batched
        self.stop = StopFlag()  # this call's own: a late request cannot reach the next one
        self.sequence: TokenSequence | None = None
        self.results = deque[Any]()
        self.has_begun = self.has_ended = self.is_read = False
        self.is_windowed = False  # tokens between the first and the recent ones were forgotten
        self.error: BaseException | None = None
        self.owner: weakref.ref[Any] | None = None  # what reads it, if that may be dropped
        self.reader = 0  # the thread that asked last
        self.left_s = 0.0  # when it went away with a result
        self.drafter: Drafter | None = None
        self.notes: TextNotes | None = None
        self.offers = deque[Offer]()  # of the pass that is computed: its drafted tokens, in order
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
        if self.has_ended or self.stop.requested:
            return True
        return self.owner is not None and self.owner() is None

    @property
    def wants_pass(self) -> bool:
        """Whether a pass is to be computed for it, now or ahead of its reader."""
        return not self.has_ended and len(self.results) < self.most_results

    @property
    def needs_batch(self) -> bool:
        """Whether its next pass is a batch, which no other call shares."""
        assert self.sequence is not None
        return len(self.sequence.tokens) < self.num_batched

    @property
    def lacks_last_alone(self) -> bool:
        """Whether its sequence holds all tokens but the last; else some are computed again."""
        assert self.sequence is not None
        return len(self.sequence.tokens) + 1 == len(self.tokens)

    @property
    def most_drafted(self) -> int:
        """How many tokens may be computed beside the next one, in case they are chosen after it."""
        return 0

    @property
    def takes_offers(self) -> bool:
        """Whether its tokens are drawn at random, and may be others each time it is asked for."""
        return False

    def offer(self, logits: Logits) -> Offer:
        """A token for it, drawn by the logits of another model. Only where it `takes_offers`."""
        raise NotImplementedError

    def due(self, most_tokens: int) -> Sequence[int]:
        """The tokens of its next pass, at most `most_tokens`."""
        assert self.sequence is not None
        held = len(self.sequence.tokens)
        behind = min(held + most_tokens, self.num_batched) if self.needs_batch else held + 1
        return self.tokens[held:behind]

    def ahead(self, most: int) -> Ahead | None:
        """What follows its next token in `most` passes at most, if no token must be looked at
        before the next is computed; None if one must."""
        return None

    def take_steps(self, steps: Steps, logits: Callable[[], Logits]) -> Sequence[int]:
        """Take what the `steps` gave, of which the last one's `logits` are still there. Return the
        tokens that they computed after the first."""
        raise NotImplementedError

    def num_kept(self, sequence: TokenSequence) -> int:
        """How many of the first tokens of `sequence` it can use."""
        if self.begins_anew:
            return 0
        if self.is_repeatable:
            return sequence.num_repeatable(self.tokens[: self.num_batched])
        return sequence.num_shared(self.tokens)

    def num_begun(self, sequence: TokenSequence) -> int:
        """How many tokens of `sequence` it begins with: as `num_kept`, but not the last of its own
        where that is computed again."""
        kept = self.num_kept(sequence)
        if kept == len(self.tokens) and sequence.kept_logits(self.tokens) is None:
            kept -= 1
            if self.is_repeatable:
                kept = sequence.num_repeatable(self.tokens, most=kept)
        return kept

    def begin(self) -> None:
        """Have its sequence keep what it can use. The last token is computed again, for its logits,
        unless they were kept."""
        assert self.sequence is not None
        logits = self.sequence.kept_logits(self.tokens)
        self.sequence.keep(self.num_begun(self.sequence))
        self.sequence.drop_snapshot()
        if logits is not None and len(self.sequence.tokens) == len(self.tokens):
            self.take(logits)

    def takes(self, position: int) -> bool:
        """Whether the logits after the token at `position` are news."""
        return position + 1 == len(self.tokens)

    def has_chosen(self, row: Row) -> bool:
        """Whether the token of `row` is its last one, and it goes on from there."""
        return not self.has_ended and self.tokens[row.position :] == [row.token]

    def take(self, logits: Logits) -> None:
        """Take the logits after its last token, valid until this returns: append to `results`, say
        which token comes next, or end."""
        raise NotImplementedError

    def computed(self) -> None:
        """A pass for it was computed, and its logits taken."""
        self.offers.clear()

    def end(self, error: BaseException | None = None) -> None:
        """No pass is computed for it any more; `error` says why, if it failed."""
        self.error, self.has_ended = self.error or error, True

    def cancel(self) -> None:
        """End it early."""
        self.end(CancelledError("the call was cancelled"))

    def drop_drafter(self) -> None:
        """Free its drafter; another one begins where it is needed again."""
        if self.drafter is not None:
            self.drafter.close()
            self.drafter = None

    def close(self) -> None:
        """Free what it holds beside its sequence; called once it has ended."""
        self.drop_drafter()
        if self.notes is not None:
            self.notes.close()
            self.notes = None


class LogitsCall(Call):
    """Computes the logits after the first `prefill` of `tokens`, and after each other one. Tokens
    behind the first `pause` are not computed before the logits of those were read."""

    begins_anew, takes_copies = True, False

    def __init__(self, tokens: Sequence[int], prefill: int, pause: int = 0) -> None:
        super().__init__(tokens[:prefill], prefill)
        self._rest, self._pause = deque(tokens[prefill:]), pause

    def begin(self) -> None:
        assert self.sequence is not None
        self.sequence.keep(0)

    def ahead(self, most: int) -> Ahead | None:
        assert self.sequence is not None
        until_pause = self._pause - len(self.sequence.tokens)
        if until_pause > 0:
            most = min(most, until_pause)
        return Ahead(most, [self.tokens[-1], *islice(self._rest, most - 1)])

    def take_steps(self, steps: Steps, logits: Callable[[], Logits]) -> Sequence[int]:
        before = len(self.tokens)
        for row in steps.logits:
            self._take(row)
        return self.tokens[before : before + steps.num_done - 1]

    def take(self, logits: Logits) -> None:
        self._take(logits.copy())

    def _take(self, logits: Logits) -> None:
        self.results.append(logits)
        if self._rest:
            self.tokens.append(self._rest.popleft())
        else:
            self.end()


class RowsCall(Call):
    """Drops the last `num_dropped` tokens of the sequence, then appends `tokens` and takes the
    logits after each: rows of one pass, each with the bits of a token alone.

    `prepare` is told the sequence before anything is appended.
    """

    takes_every_row, takes_copies = True, False

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

    def num_kept(self, sequence: TokenSequence) -> int:
        return len(sequence.tokens)

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


class MeanCall(RowsCall):
    """Computes `tokens` from the start of a sequence; its result is the mean of what the last layer
    gives for each, (hidden,) float64. Each row has the bits of a token alone."""

    wants_hidden = begins_anew = True

    def __init__(self, tokens: Sequence[int], hidden_size: int) -> None:
        super().__init__(tokens)
        self._sum = np.zeros(hidden_size)

    def begin(self) -> None:
        assert self.sequence is not None
        self._sum[:] = 0
        self.sequence.keep(0)
        super().begin()

    def takes(self, position: int) -> bool:
        return True

    def take(self, logits: Logits) -> None:
        self._sum += logits

    def computed(self) -> None:
        super().computed()
        if self.has_ended:
            self.results.append(self._sum / len(self.tokens))
