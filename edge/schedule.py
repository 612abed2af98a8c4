"""The schedule: which call has which sequence, and what the next pass computes."""

import time
from collections.abc import Sequence
from typing import NamedTuple

from haversack.devices.errors import ClosedError
from haversack.devices.llama import ContextShape, Row
from haversack.edge.call import Call
from haversack.edge.figures import Figures
from haversack.edge.kv_disk import KvDisk
from haversack.edge.sequence import TokenSequence
from haversack.edge.speculate import Speculation

_LEAST_SHARED = 32  # tokens that another sequence must hold more, for a copy to be worth it
_IDLE_S = 1.0  # a reader that stays away for longer may lose its sequence to a call that waits


class Part(NamedTuple):
    """A call's part of a pass: the next tokens of its sequence, and drafted ones behind them."""

    call: Call
    sequence: TokenSequence
    tokens: Sequence[int]
    drafted: Sequence[int] = ()

    def rows(self) -> list[Row]:
        """Return a row for each token, before the sequence has it."""
        call, sequence, tokens, drafted = self
        first, last, every = len(sequence.tokens), len(tokens) - 1, call.takes_every_row
        return [
            Row(token, first + idx, sequence.number, every or idx >= last)
            for idx, token in enumerate([*tokens, *drafted])
        ]


class Work(NamedTuple):
    """The work of a pass: a batch of one call, or a token of each of several calls with drafts."""

    parts: Sequence[Part]
    is_batch: bool
    most_ahead: int  # passes that may be computed at once, without a look at other calls or drafts

    @property
    def is_prompt(self) -> bool:
        """Whether it is a batch of a prompt."""
        return self.is_batch and not self.parts[0].call.takes_every_row

    @property
    def num_drafted(self) -> int:
        """How many tokens of it are drafted."""
        return sum(len(part.drafted) for part in self.parts)


class Schedule:
    """Gives calls their sequences, and says what the next pass computes. It has no lock: one thread
    at a time may use it.

    A prompt's batch has a pass of its own, so that its bits do not depend on other calls; it takes
    turns with passes of one row of each call that decodes. Before a batch, tokens that another
    sequence holds are copied from there and not computed.
    """

    def __init__(
        self,
        sequences: Sequence[TokenSequence],
        shape: ContextShape,
        figures: Figures,
        speculation: Speculation,
    ) -> None:
        self.latest = sequences[0]  # the sequence of the call that ended last
        self.under_way: Sequence[Call] = ()  # in the pass that is computed now
        self._sequences, self._shape, self._figures = sequences, shape, figures
        self._speculation = speculation
        self._calls: list[Call] = []  # that have a sequence
        self._evicted: list[Call] = []  # that had one, and are not read now
        self._queue: list[Call] = []  # that wait for one
        self._num_taken = 0
        self._batch_is_next = False
        self.disk: KvDisk | None = None  # where texts wait that lost their sequence

    # --------------------------------------------------------------- sequences
    def find_sequence(self, call: Call, wanted: TokenSequence | None) -> None:
        """Give `call` a sequence (`wanted`, or any) if it is first in the queue and one is free;
        of several, the one that fits best (see `_fitness`)."""
        if call not in self._queue:
            self._queue.append(call)
        self.drop_ended()
        if self._queue[0] is not call and wanted is None:
            return
        usable = [wanted] if wanted is not None else self._sequences
        users = {each.sequence: each for each in self._calls}
        free = [each for each in usable if each not in users]
        if not free:
            free = [each for each in usable if self._evicted_for(call, users[each])][:1]
        if not free:
            return
        found = max(free, key=lambda each: _fitness(each, call))
        self._queue.remove(call)
        if call in self._evicted:
            self._evicted.remove(call)
        self._num_taken += 1
        found.last_used, call.sequence = self._num_taken, found
        call.has_begun = False
        call.before = call.before or self._figures.stats()
        self._calls.append(call)

    def free_sequence(self) -> TokenSequence:
        """Return the least recently used sequence without a call, as if one had used it now. Raises
        ClosedError if each has one."""
        self.drop_ended()
        used = [call.sequence for call in self._calls]
        free = [each for each in self._sequences if each not in used]
        if not free:
            raise ClosedError("every sequence has a call that runs: try again after it")
        found = min(free, key=lambda each: each.last_used)
        self._num_taken += 1
        found.last_used, self.latest = self._num_taken, found
        return found

    def end_wait(self, call: Call) -> None:
        """Take `call` out of the queue, if it is there."""
        if call in self._queue:
            self._queue.remove(call)

    def _evicted_for(self, call: Call, idle: Call) -> bool:
        """Take the sequence of `idle` if nobody reads it: its reader stays away, or is the very
        thread that reads `call` and cannot read both. If it is read again, its tokens are computed
        again."""
        stays_away = time.monotonic() - idle.left_s > _IDLE_S
        if idle.is_read or idle in self.under_way:
            return False
        if not (stays_away or idle.reader == call.reader):
            return False
        self._calls.remove(idle)
        self._evicted.append(idle)
        idle.sequence = None
        idle.drop_drafter()
        return True

    def drop_ended(self) -> None:
        """Free what calls hold that have ended, or were cancelled or dropped."""
        for call in [each for each in self._calls if each.is_over]:
            if call in self.under_way:
                continue
            if not call.has_ended:
                call.cancel()
            assert call.sequence is not None and call.before is not None
            self.latest, call.sequence = call.sequence, None
            self._calls.remove(call)
            call.stats = self._figures.spent(call, call.before)
            call.close()
        if self._evicted:
            for call in [each for each in self._evicted if each.is_over]:
                self._evicted.remove(call)
                call.close()

    # ------------------------------------------------------------------ passes
    def next_work(self) -> Work:
        """Return a batch of one call, or a row of each one that decodes: they take turns."""
        self.drop_ended()
        batches, rows = list[Call](), list[Call]()
        for call in self._calls:
            if not call.has_begun:
                self._begin(call)
            if call.wants_pass:
                (batches if call.needs_batch else rows).append(call)
        is_batch = bool(batches) and (self._batch_is_next or not rows)
        if is_batch and self._source_for(batches[0]) is not None:
            batches[0].has_begun = False
            return self.next_work()
        self._batch_is_next = not is_batch
        chosen = batches[:1] if is_batch else rows[: self._shape.most_rows]
        if len(chosen) < len(batches) + len(rows):  # the others come first next time
            self._calls = [call for call in self._calls if call not in chosen] + chosen
        drafts = [] if is_batch else self._speculation.drafts(chosen, self._shape.most_rows)
        parts = list[Part]()
        for idx, call in enumerate(chosen):
            assert call.sequence is not None
            drafted = drafts[idx] if drafts else ()
            parts.append(Part(call, call.sequence, call.due(self._shape.batch_tokens), drafted))
        # llama.cpp computes neighbouring sequences together if they are in order
        parts.sort(key=lambda part: part.sequence.number)
        is_alone = len(self._calls) == len(chosen) == 1 and not self._queue
        is_lone = is_alone and not is_batch and not drafts
        return Work(parts, is_batch, self._speculation.most_ahead(chosen[0]) if is_lone else 1)

    def _begin(self, call: Call) -> None:
        call.has_begun = True
        try:
            if self.disk is not None:
                source = self._source_for(call)
                self.disk.before(call, 0 if source is None else call.num_kept(source))
            source, own = self._source_for(call), call.sequence
            if source is not None and own is not None:
                own.copy(source)
            call.begin()
        except Exception as error:
            call.end(error)

    def _source_for(self, call: Call) -> TokenSequence | None:
        """Return the sequence that holds most of what `call` can use, if that is more than its own
        holds by so much that a copy is worth it."""
        own = call.sequence
        if own is None or len(self._sequences) == 1:
            return None
        if not own.drops_parts or not call.takes_copies:
            return None
        most, found = call.num_begun(own) + _LEAST_SHARED - 1, None
        for sequence in self._sequences:
            if len(sequence.tokens) > most and (usable := call.num_begun(sequence)) > most:
                most, found = usable, sequence
        return found

    def keep_all(self) -> None:
        """Keep on disk, if there is one for that, what every sequence holds."""
        if self.disk is not None:
            for sequence in sorted(self._sequences, key=lambda each: each.last_used):
                self.disk.put(sequence)

    def start_anew(self) -> None:
        """Have what calls want computed again: their sequences are empty."""
        for call in self._calls:
            call.has_begun = False

    def stop_all(self) -> None:
        """Ask the calls that have a sequence to stop; from any thread."""
        for call in list(self._calls):
            call.stop.request()

    def check_integrity(self) -> None:
        """Raise AssertionError if two calls have the same sequence."""
        held = [call.sequence for call in self._calls]
        assert None not in held and len(set(held)) == len(held), f"{held} of {self._calls}"


def _fitness(sequence: TokenSequence, call: Call) -> tuple[int, int, int]:
    """How well `call` goes on from a sequence: best from one of which it keeps nearly all, then
    from an empty one, then from one of which it keeps most. What else was said in another one would
    be lost for little: then the sequence that was not used for longest fits best. What `call` can
    use of the others is copied."""
    kept, held = call.num_kept(sequence), len(sequence.tokens)
    if not held:
        return 2, 0, -sequence.last_used
    goes_on = 2 * kept > max(len(call.tokens), held)
    if not goes_on:
        return 0, 0, -sequence.last_used
    return 3 if held - kept < _LEAST_SHARED else 1, kept, -sequence.last_used
