"""The loop that steps the engine: all calls' rows go through it, pass after pass."""

import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

from haversack.devices.errors import CancelledError, ClosedError
from haversack.devices.forks import Birthplace
from haversack.devices.ledger import Lease, ledger
from haversack.devices.llama import Row
from haversack.devices.memory import PeakMeter
from haversack.devices.steps import Ahead
from haversack.edge.call import Call
from haversack.edge.figures import Figures
from haversack.edge.kv_disk import KvDisk
from haversack.edge.kv_keeping import KvKeeper
from haversack.edge.model_plan import Plan
from haversack.edge.schedule import Part, Schedule, Work
from haversack.edge.sequence import Logits, TokenSequence
from haversack.edge.speculate import Speculation
from haversack.offload.engine import Engine
from haversack.offload.kv_file import read_about

Used = TypeVar("Used")

_LOOK_S = 0.1  # how often a thread that waits looks whether its call was cancelled


class EngineLoop:
    """Computes the passes of an engine for the calls of all threads.

    One thread at a time drives: a thread that waits for a result of its own call computes pass
    after pass until that is there, and each pass has rows of all calls that want one (see
    `Schedule`). So calls are computed a few tokens ahead of their readers, but only while a thread
    waits; a call that is not read keeps no other from being computed.
    """

    def __init__(
        self,
        engine: Engine,
        planned: Plan,
        speculation: Speculation,
        lease: Lease | None = None,
        peak: PeakMeter | None = None,
    ) -> None:
        """`lease` grows by the memory that a pass takes if it is wider than all before it.
        `peak` meters the process; by default it begins now."""
        self.engine, self.birthplace = engine, Birthplace()
        self._lease = lease
        self.keeper = KvKeeper(planned, engine.model)
        self.figures = Figures(engine, planned, speculation, peak or PeakMeter())
        self.speculation = speculation
        numbers = range(planned.shape.sequences)
        self.sequences = [TokenSequence(number, engine.context) for number in numbers]
        self._lock = threading.RLock()  # guards what follows
        self._schedule = Schedule(self.sequences, planned.shape, self.figures, speculation)
        self._turn = threading.Condition(self._lock)
        self._life = threading.Lock()  # held while the engine is used beside the loop, and freed
        self._driver = 0  # the thread that drives, if one does
        self._num_waiting = 0
        self._paused_until_s = 0.0  # no thread drives before: another wants no pass computed
        self._closed = False
        self._widest_rows = 0

    @property
    def latest(self) -> TokenSequence:
        """The sequence of the call that ended last."""
        return self._schedule.latest

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
                        while not call.is_ready and not self._is_paused:
                            self._pass(call)
                    finally:
                        self._give_drive()
        finally:
            call.is_read, call.left_s = False, time.monotonic()
        if call.error is not None and not call.results:
            raise call.error

    def leave(self, call: Call) -> None:
        """End `call`, which is not read any more, now or once its pass is computed."""
        call.stop.request()
        if sys.is_finalizing():  # the process ends, and parts of Python are gone
            return
        with self._lock:
            self._schedule.drop_ended()
            if call.sequence is None:  # it never had one
                call.close()
            self._wake()

    def _takes_drive(self, call: Call, wanted: TokenSequence | None) -> bool:
        """Whether this thread drives from now on; False once the call is ready without that."""
        with self._lock:
            try:
                while not call.is_ready:
                    self._refuse_stopped(call)
                    if call.sequence is None:
                        self._schedule.find_sequence(call, wanted)
                    if call.sequence is not None and not self._driver and not self._is_paused:
                        self._driver = call.reader
                        return True
                    self._refuse_inner_call()
                    self._wait()
                return False
            finally:
                self._schedule.end_wait(call)

    def _refuse_stopped(self, call: Call) -> None:
        if call.stop.requested:
            raise CancelledError("the call was cancelled")
        if call.before is None:  # it has not begun
            self.check_open()

    def _give_drive(self) -> None:
        with self._lock:
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

    # ------------------------------------------------------------------ passes
    def _pass(self, driver: Call) -> None:
        """Compute one pass, if a call wants one."""
        schedule = self._schedule
        with self._lock:
            self._refuse_stopped(driver)
            work = schedule.next_work()
            schedule.under_way = calls = [part.call for part in work.parts]
        try:
            if calls:
                self._compute(work, driver)
        finally:
            with self._lock:
                schedule.under_way = ()
                schedule.drop_ended()
                self._wake()

    def _compute(self, work: Work, driver: Call) -> None:
        parts = work.parts
        stops = [driver.stop]  # another call may stop a pass only where it is alone in it
        if len(parts) == 1 and parts[0].call is not driver:
            stops.append(parts[0].call.stop)
        self.engine.stop.clear(*stops)
        try:
            ahead = self._ahead(work)
            if ahead is not None:
                self._go_on(parts[0], ahead)
            else:
                self._compute_rows(work)
        except BaseException as error:
            self._take_back(work, error)
            if not isinstance(error, Exception):
                raise

    def _ahead(self, work: Work) -> Ahead | None:
        """What may be computed at once after the next token of a lone call; None for nothing."""
        if work.most_ahead == 1 or not self.engine.context.goes_on:
            return None
        call = work.parts[0].call
        ahead = call.ahead(work.most_ahead) if call.lacks_last_alone else None
        return ahead and ahead._replace(watch=self.speculation.watch(call))

    def _go_on(self, part: Part, ahead: Ahead) -> None:
        """Compute several passes of a token each."""
        call, sequence, tokens, _ = part
        context = self.engine.context
        began_s = time.perf_counter()
        try:
            context.go_on(part.rows()[0], ahead)
        finally:  # what was computed before a pass that failed stands
            num_done = context.steps.num_done
            if num_done:
                passes_s = time.perf_counter() - began_s
                self.figures.count_decoded([(call, num_done)], passes_s)
                sequence.tokens += tokens
                sequence.tokens += call.take_steps(context.steps, context.borrow_logits)
                taken_s = time.perf_counter() - began_s
                first_s = context.steps.first_s if num_done > 1 else taken_s
                self.speculation.note_plain(num_done, taken_s, first_s)

    def _compute_rows(self, work: Work) -> None:
        parts = work.parts
        rows = (
            parts[0].rows() if len(parts) == 1 else [row for each in parts for row in each.rows()]
        )
        is_usual = len(rows) <= self._widest_rows and not work.is_batch
        began_s = time.perf_counter()
        self._run(rows, parts[0].call.wants_hidden)
        pass_s = time.perf_counter() - began_s
        decoded = self._hand_out(work, rows)
        self._count(work, decoded, pass_s)
        self._weigh(work, decoded, is_usual, time.perf_counter() - began_s)

    def _run(self, rows: Sequence[Row], hidden: bool) -> None:
        """Compute a pass. One that is wider than all before it takes memory, which is measured."""
        context = self.engine.context
        compute = context.compute_hidden if hidden else context.compute
        if len(rows) <= self._widest_rows or self._lease is None:
            compute(rows)
            return
        with ledger.measured(self._lease):
            compute(rows)
        self._widest_rows = len(rows)

    def _count(self, work: Work, decoded: Sequence[tuple[Call, int]], pass_s: float) -> None:
        if work.is_prompt:
            num_tokens = sum(number for _, number in decoded)
            self.figures.count_prompt(work.parts[0].call, num_tokens, pass_s)
        else:
            self.figures.count_decoded(decoded, pass_s, work.num_drafted)

    def _weigh(
        self, work: Work, decoded: Sequence[tuple[Call, int]], is_usual: bool, taken_s: float
    ) -> None:
        """Have the gate learn what a pass took, with the choice of tokens after it."""
        if not is_usual:
            self.speculation.note_unusual()
            return
        num_right = sum(number for _, number in decoded) - len(work.parts)
        self.speculation.note(len(work.parts), work.num_drafted, num_right, taken_s)

    def _hand_out(self, work: Work, rows: Sequence[Row]) -> list[tuple[Call, int]]:
        """Note the tokens as computed, have the calls take their logits, and drop drafted tokens
        that were not chosen. Return how many tokens of each call are kept."""
        first, kept = 0, list[tuple[Call, int]]()
        for call, sequence, tokens, drafted in work.parts:
            sequence.tokens += tokens
            if work.is_prompt:
                sequence.note_batch(len(tokens))
            behind = first + len(tokens) + len(drafted)
            num_kept = len(tokens)
            for idx in range(first, behind):
                if idx >= first + len(tokens):
                    if not call.has_chosen(rows[idx]):
                        break
                    sequence.tokens.append(rows[idx].token)
                    num_kept += 1
                if not rows[idx].wants_logits:
                    continue
                context = self.engine.context
                logits = (
                    context.borrow_hidden(idx) if call.wants_hidden else context.borrow_logits(idx)
                )
                if len(sequence.tokens) == call.num_batched:
                    sequence.keep_logits(logits)
                if call.takes(rows[idx].position):
                    self._have_taken(call, logits)
            if first + num_kept < behind:
                sequence.keep(len(sequence.tokens))
            kept.append((call, num_kept))
            first = behind
            call.computed()
        return kept

    def _have_taken(self, call: Call, logits: Logits) -> None:
        try:
            call.take(logits)
        except Exception as error:
            call.end(error)

    def _take_back(self, work: Work, error: BaseException) -> None:
        """A pass has failed: its calls end, unless it was stopped, for one of them or for its
        driver: then what they want is computed again."""
        stopped = isinstance(error, CancelledError) and self.engine.stop.requested
        for call, sequence, _, _ in work.parts:
            if isinstance(error, Exception) and not stopped:
                call.end(error)
            call.offers.clear()
            sequence.keep(len(sequence.tokens))

    # ------------------------------------------------------------------ keeping
    def keep_on(self, disk: KvDisk | None) -> None:
        """Have texts that lose their sequence wait on `disk` from now on, or nowhere."""
        self._schedule.disk = disk

    def save_kv(self, path: Path) -> int:
        """Write what `latest` holds to a file; return its number of tokens. Raises PromptError,
        StorageError, ClosedError."""

        def save(_: Engine) -> int:
            self.keeper.write(self.latest, path)
            return len(self.latest.tokens)

        return self.between_passes(save)

    def load_kv(self, path: Path) -> int:
        """Have a sequence that no call uses hold what was written to a file; return its number of
        tokens. Raises PromptError, StorageError, ClosedError."""

        def load(_: Engine) -> int:
            self.keeper.refuse(read_about(path))  # before a sequence loses what it holds
            sequence = self._schedule.free_sequence()
            self.keeper.read(sequence, path)
            return len(sequence.tokens)

        return self.between_passes(load)

    # ---------------------------------------------------------- beside the loop
    def between_passes(self, use: Callable[[Engine], Used]) -> Used:
        """Return what `use` returns, called while no pass is computed. Raises ClosedError if the
        model is closed, or if a pass of this very thread is computed now."""
        self.check_open()
        with self._lock:
            self._wait_for_driver()
            self.check_open()
            self._wake()  # they go on when the lock is free
            return use(self.engine)

    def _refuse_inner_call(self) -> None:
        if self._driver == threading.get_ident():
            raise ClosedError("a call of this thread is still running: do this after it")

    def _wait_for_driver(self) -> None:
        """Return when no thread drives. The pause that this asks for is renewed with each look, so
        that it ends by itself if an interrupt ends the wait."""
        self._refuse_inner_call()
        while self._driver:
            self._paused_until_s = time.monotonic() + 2 * _LOOK_S
            self._wait()
        self._paused_until_s = 0.0

    @property
    def _is_paused(self) -> bool:
        return self._paused_until_s > time.monotonic()

    def start_anew(self) -> None:
        """Go on with a new context of the engine, which is empty: what calls want is computed
        again. To be called `between_passes`."""
        for sequence in self.sequences:
            sequence.reset(self.engine.context)
        self._schedule.start_anew()
        self._widest_rows = 0

    def beside(self, use: Callable[[Engine], Used]) -> Used:
        """Return what `use` returns, called while the engine may compute but is not freed: for what
        passes do not change, such as the vocabulary. Raises ClosedError."""
        self.birthplace.check()  # a child lacks the thread that may hold the lock
        with self._life:
            self.check_open()
            return use(self.engine)

    def refuse(self) -> None:
        """From now on the model is closed to new calls, and those that run are asked to stop."""
        self._closed = True
        self._schedule.stop_all()

    def close(self, free: Callable[[], None]) -> None:
        """Call `free`, which frees the engine, once no call runs any more. Raises ClosedError if
        one runs in this very thread."""
        with self._lock:
            self._wait_for_driver()
            self.refuse()
            self._schedule.drop_ended()
            self._schedule.keep_all()
            self._wake()
        with self._life:
            free()

    def check_integrity(self) -> None:
        """Raise AssertionError unless the books of tokens agree with the context; to be called
        `between_passes`."""
        for sequence in self.sequences:
            held = self.engine.context.num_tokens(sequence.number)
            assert held == len(sequence.tokens), f"{sequence.tokens} but {held} tokens"
        self._schedule.check_integrity()
