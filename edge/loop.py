"""The loop that steps the engine: all calls' rows go through it, pass after pass."""

import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from typing import NamedTuple

from haversack.devices.errors import CancelledError, ClosedError
from haversack.devices.forks import Birthplace
from haversack.devices.ledger import Lease, ledger
from haversack.devices.llama import Row
from haversack.devices.memory import PeakMeter
from haversack.edge.planner import Plan
from haversack.edge.sequence import Call, Logits, TokenSequence
from haversack.edge.stats import Stats
from haversack.offload.engine import Engine

_LOOK_S = 0.1  # how often a thread that waits looks whether its call was cancelled
_IDLE_S = 1.0  # a reader that stays away for longer may lose its sequence to a call that waits


class _Work(NamedTuple):
    """A pass: the next tokens of some calls."""

    parts: Sequence[tuple[Call, Sequence[int]]]
    is_batch: bool


class EngineLoop:
    """Computes the passes of an engine for the calls of all threads.

    One thread at a time drives: whoever waits for a result of its own call computes pass after pass
    until that is there, and each pass has rows of all calls that want one. A prompt's batch has a
    pass of its own, so that its bits do not depend on other calls; it takes turns with passes
    of one row of each call that decodes. So calls are computed a few tokens ahead of their readers,
    but only while somebody waits; a call that is not read keeps nobody else from being computed.
    """

    def __init__(
        self,
        engine: Engine,
        planned: Plan,
        lease: Lease | None = None,
        peak: PeakMeter | None = None,
    ) -> None:
        """`lease` grows by the memory that a pass takes if it is wider than all before it.
        `peak` meters the process; by default it begins now."""
        self.engine, self.birthplace = engine, Birthplace()
        self._plan = planned
        self._lease, self._peak = lease, peak or PeakMeter()
        numbers = range(planned.shape.sequences)
        self.sequences = [TokenSequence(number, engine.context) for number in numbers]
        self.latest = self.sequences[0]  # the sequence of the call that ended last
        self._turn = threading.Condition()  # guards what follows
        self._life = threading.Lock()  # held while the engine is used beside the loop, and freed
        self._calls: list[Call] = []  # that have a sequence
        self._evicted: list[Call] = []  # that had one, and are not read now
        self._queue: list[Call] = []  # that wait for one
        self._under_way: Sequence[Call] = ()  # in the pass that is computed now
        self._driver = 0  # the thread that drives, if one does
        self._num_waiting = self._num_taken = 0
        self._closed = self._batch_is_next = False
        self._widest_rows = 0
        self._prompt_tokens = self._decoded_tokens = 0
        self._prefill_s = self._decode_s = 0.0
        self._peak.look()

    # --------------------------------------------------------------- for calls
    def check_open(self) -> None:
        """Raises ClosedError if the model is closed, or was loaded in a parent of this process."""
        self.birthplace.check()
        if self._closed:
            raise ClosedError("the model is closed: load it again")

    def advance(self, call: Call, wanted: TokenSequence | None = None) -> None:
        """Return once `call` has a result or has ended; until then wait for a sequence (`wanted`,
        or any), and compute passes or wait while another thread does.

        Raises CancelledError once the call was asked to stop, ClosedError, and the error with which
        the call ended.
        """
        call.is_read, call.reader = True, threading.get_ident()
        try:
            while not call.is_ready:
                if self._takes_drive(call, wanted):
                    try:
                        while not call.is_ready:
                            self._pass(call)
                    finally:
                        self._give_drive()
        finally:
            call.is_read, call.left_s = False, time.monotonic()
        if call.error is not None and not call.results:
            raise call.error

    def leave(self, call: Call) -> None:
        """Nobody reads `call` any more: end it now, or once its pass is computed."""
        call.stop.request()
        with self._turn:
            self._drop_ended()
            if call.sequence is None:  # it never had one
                call.close()
            self._wake()

    def _takes_drive(self, call: Call, wanted: TokenSequence | None) -> bool:
        """Whether this thread drives from now on; False once the call is ready without that."""
        with self._turn:
            try:
                while not call.is_ready:
                    self._refuse_stopped(call)
                    if call.sequence is None:
                        self._find_sequence(call, wanted)
                    if call.sequence is not None and not self._driver:
                        self._driver = call.reader
                        return True
                    self._refuse_inner_call()
                    self._wait()
                return False
            finally:
                if call in self._queue:
                    self._queue.remove(call)

    def _refuse_stopped(self, call: Call) -> None:
        if call.stop.requested:
            raise CancelledError("the call was cancelled")
        if call.before is None:  # it has not begun
            self.check_open()

    def _give_drive(self) -> None:
        with self._turn:
            self._driver = 0
            self._wake()

    def _wait(self) -> None:
        self._num_waiting += 1
        try:
            self._turn.wait(_LOOK_S)
        finally:
            self._num_waiting -= 1

    def _wake(self) -> None:
        if self._num_waiting:
            self._turn.notify_all()

    # --------------------------------------------------------------- sequences
    def _find_sequence(self, call: Call, wanted: TokenSequence | None) -> None:
        """Give `call` a sequence if it is first in the queue and one is free (see `_fitness`)."""
        if call not in self._queue:
            self._queue.append(call)
        self._drop_ended()
        if self._queue[0] is not call and wanted is None:
            return
        of_use = [wanted] if wanted is not None else self.sequences
        free = [each for each in of_use if each.call is None]
        if not free:
            free = [each for each in of_use if self._evicted_for(call, each)][:1]
        if not free:
            return
        found = max(free, key=lambda each: _fitness(each, call.tokens))
        self._queue.remove(call)
        if call in self._evicted:
            self._evicted.remove(call)
        self._num_taken += 1
        found.call, found.last_used, call.sequence = call, self._num_taken, found
        call.has_begun = False
        call.before = call.before or self.stats()
        self._calls.append(call)

    def _evicted_for(self, call: Call, sequence: TokenSequence) -> bool:
        """Take `sequence` from a call that nobody reads: its reader stays away, or is this very
        thread, which cannot read both. If it is read again, its tokens are computed again."""
        idle = sequence.call
        assert idle is not None, "the sequence is not free"
        stays_away = time.monotonic() - idle.left_s > _IDLE_S
        if (
            idle.is_read
            or idle in self._under_way
            or not (stays_away or idle.reader == call.reader)
        ):
            return False
        self._calls.remove(idle)
        self._evicted.append(idle)
        idle.sequence = sequence.call = None
        return True

    def _drop_ended(self) -> None:
        """Free what calls hold that have ended, or were cancelled or dropped."""
        for call in [each for each in self._calls if each.is_over]:
            if call in self._under_way:
                continue
            if not call.has_ended:
                call.cancel()
            sequence = call.sequence
            assert sequence is not None and call.before is not None
            self.latest, sequence.call, call.sequence = sequence, None, None
            self._calls.remove(call)
            call.stats = self._spent(call, call.before)
            call.close()
        for call in [each for each in self._evicted if each.is_over]:
            self._evicted.remove(call)
            call.close()

    # ------------------------------------------------------------------ passes
    def _pass(self, driver: Call) -> None:
        """Compute one pass, if a call wants one."""
        with self._turn:
            self._refuse_stopped(driver)
            work = self._next_work()
            self._under_way = [call for call, _ in work.parts]
        try:
            if work.parts:
                self._compute(work, driver)
        finally:
            with self._turn:
                self._under_way = ()
                if any(call.is_over for call, _ in work.parts):
                    self._drop_ended()
                self._wake()

    def _next_work(self) -> _Work:
        """A batch of one call, or a row of each one that decodes: they take turns."""
        self._drop_ended()
        for call in self._calls:
            if not call.has_begun:
                self._begin(call)
        ready = [call for call in self._calls if call.wants_pass]
        rows = [call for call in ready if not call.needs_batch]
        most_rows = self._plan.shape.most_rows
        is_batch = len(rows) < len(ready) and (self._batch_is_next or not rows)
        self._batch_is_next = not is_batch
        if is_batch:
            chosen = [call for call in ready if call.needs_batch][:1]
        else:
            chosen = rows[:most_rows]
        if len(chosen) < len(ready):  # the others come first next time
            self._calls = [call for call in self._calls if call not in chosen] + chosen
        most_tokens = self._plan.shape.batch_tokens
        # llama.cpp computes neighbouring sequences together if they are in order
        chosen.sort(key=lambda call: call.sequence.number if call.sequence else 0)
        return _Work([(call, call.due(most_tokens)) for call in chosen], is_batch)

    def _begin(self, call: Call) -> None:
        call.has_begun = True
        try:
            call.begin()
        except Exception as error:
            call.end(error)

    def _compute(self, work: _Work, driver: Call) -> None:
        rows = list[Row]()
        for call, tokens in work.parts:
            rows += _rows_of(call, tokens)
        stops = [driver.stop]  # another call may stop a pass only where it is alone in it
        if len(work.parts) == 1 and work.parts[0][0] is not driver:
            stops.append(work.parts[0][0].stop)
        self.engine.stop.clear(*stops)
        began_s = time.perf_counter()
        widest = len(rows) > self._widest_rows
        try:
            with ledger.measured(self._lease) if widest and self._lease else nullcontext():
                self.engine.context.compute(rows)
            self._widest_rows = max(self._widest_rows, len(rows))
            self._count(work, time.perf_counter() - began_s)
            self._hand_out(work)
        except BaseException as error:
            self._take_back(work, error)
            if not isinstance(error, Exception):
                raise

    def _hand_out(self, work: _Work) -> None:
        """Note the tokens as computed, and have the calls take their logits."""
        row = -1
        for call, tokens in work.parts:
            sequence = call.sequence
            assert sequence is not None
            first = len(sequence.tokens)
            sequence.tokens += tokens
            for idx in range(len(tokens)):
                row += 1
                if not _wants_logits(call, idx, tokens):
                    continue
                logits = self.engine.context.borrow_logits(row)
                if len(sequence.tokens) == call.num_batched:
                    sequence.keep_logits(logits)
                if call.takes(first + idx):
                    self._have_taken(call, logits)
            call.computed()

    def _have_taken(self, call: Call, logits: Logits) -> None:
        try:
            call.take(logits)
        except Exception as error:
            call.end(error)

    def _take_back(self, work: _Work, error: BaseException) -> None:
        """A pass has failed: its calls end, unless it was stopped, for one of them or for its
        driver: then what they want is computed again."""
        stopped = isinstance(error, CancelledError) and self.engine.stop.requested
        for call, _ in work.parts:
            assert call.sequence is not None
            if isinstance(error, Exception) and not stopped:
                call.end(error)
            call.sequence.keep(len(call.sequence.tokens))

    def _count(self, work: _Work, pass_s: float) -> None:
        for call, tokens in work.parts:
            if work.is_batch and not call.takes_every_row:
                call.prompt_tokens += len(tokens)
                call.prefill_s += pass_s
                self._prompt_tokens += len(tokens)
            else:
                call.decoded_tokens += len(tokens)
                call.decode_s += pass_s
                self._decoded_tokens += len(tokens)
        if work.is_batch and not work.parts[0][0].takes_every_row:
            self._prefill_s += pass_s
            self._peak.look()
        else:
            self._decode_s += pass_s

    # ---------------------------------------------------------- beside the loop
    @contextmanager
    def between_passes(self) -> Iterator[Engine]:
        """Use the engine while no pass is computed. Raises ClosedError if the model is closed, or
        if a pass of this very thread is computed now."""
        self.check_open()
        with self._turn:
            self._wait_for_driver()
            self.check_open()
            yield self.engine

    def _refuse_inner_call(self) -> None:
        if self._driver == threading.get_ident():
            raise ClosedError("a call of this thread is still running: do this after it")

    def _wait_for_driver(self) -> None:
        self._refuse_inner_call()
        while self._driver:
            self._wait()

    def start_anew(self) -> None:
        """The engine has a new context, which is empty: what calls want is computed again. To be
        called `between_passes`."""
        for sequence in self.sequences:
            sequence.reset(self.engine.context)
        for call in self._calls:
            call.has_begun = False
        self._widest_rows = 0

    @contextmanager
    def beside(self) -> Iterator[Engine]:
        """Use what is not changed by passes (the vocabulary) without it being freed meanwhile.
        Raises ClosedError."""
        self.birthplace.check()  # in a child, whoever holds the lock is not there
        with self._life:
            self.check_open()
            yield self.engine

    def refuse(self) -> None:
        """From now on the model is closed to new calls, and those that run are asked to stop."""
        self._closed = True
        for call in list(self._calls):
            call.stop.request()

    @contextmanager
    def closing(self) -> Iterator[None]:
        """Free the engine inside the block: no call runs any more. Raises ClosedError if one runs
        in this very thread."""
        with self._turn:
            self._wait_for_driver()
            self.refuse()
            self._drop_ended()
            self._wake()
        with self._life:
            yield

    def check_integrity(self) -> None:
        """Raise AssertionError unless the books of tokens agree with the context; to be called
        `between_passes`."""
        for sequence in self.sequences:
            held = self.engine.context.num_tokens(sequence.number)
            assert held == len(sequence.tokens), f"{sequence.tokens} but {held} tokens"
            assert sequence.call is None or sequence.call in self._calls

    # ------------------------------------------------------------------- stats
    def _spent(self, call: Call, before: Stats) -> Stats:
        """What the call took: its own tokens and passes, and what the engine did meanwhile."""
        return replace(
            self.stats().since(before),
            prompt_tokens=call.prompt_tokens,
            tokens=call.decoded_tokens,
            prefill_s=call.prefill_s,
            decode_s=call.decode_s,
        )

    def stats(self) -> Stats:
        """Everything since loading."""
        experts, files = self.engine.experts, self.engine.files
        counts = experts.prefetch_counts() if experts else None
        return Stats(
            prompt_tokens=self._prompt_tokens,
            tokens=self._decoded_tokens,
            prefill_s=self._prefill_s,
            decode_s=self._decode_s,
            hits=experts.hits if experts else 0,
            misses=experts.misses if experts else 0,
            bytes_read=files.bytes_read if files else 0,
            read_s=files.busy_s if files else 0.0,
            wait_s=files.wait_s if files else 0.0,
            own_s=experts.own_s if experts else 0.0,
            prefetched=counts.started if counts else 0,
            prefetched_right=counts.right if counts else 0,
            prefetchable=counts.possible if counts else 0,
            needed=counts.needed if counts else 0,
            prefetching=experts is not None and experts.is_prefetching,
            ram_budget_bytes=self._plan.ram_bytes,
            ram_planned_bytes=self._plan.planned_bytes,
            ram_peak_bytes=self._peak.look(),
        )


def _fitness(sequence: TokenSequence, tokens: Sequence[int]) -> tuple[int, int]:
    """How well `tokens` go on from a sequence: by what they share, if that is most of them. What
    else was said there would be lost for little: then the sequence that was not used for longest
    fits best."""
    shared = sequence.num_shared(tokens)
    return shared if 2 * shared > len(tokens) else 0, -sequence.last_used


def _wants_logits(call: Call, idx: int, tokens: Sequence[int]) -> bool:
    """Whether the row of the token at `idx` of a call's part wants logits."""
    return call.takes_every_row or idx == len(tokens) - 1


def _rows_of(call: Call, tokens: Sequence[int]) -> Iterator[Row]:
    assert call.sequence is not None
    number, first = call.sequence.number, len(call.sequence.tokens)
    for idx, token in enumerate(tokens):
        yield Row(token, first + idx, number, _wants_logits(call, idx, tokens))
