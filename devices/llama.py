"""libllama as Python objects: a context; its model is in `llama_model`."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from haversack.devices import _native as native
from haversack.devices import guard
from haversack.devices._native import llama
from haversack.devices.batch import Batch
from haversack.devices.errors import (
    AbortedError,
    CancelledError,
    ClosedError,
    ContextError,
    HaversackError,
    ModelFileError,
    PromptError,
)
from haversack.devices.forks import Birthplace
from haversack.devices.interrupts import StopFlag
from haversack.devices.llama_model import LlamaModel
from haversack.devices.logs import LogCapture, captured_logs
from haversack.devices.steps import Ahead, Steps
from haversack.devices.team import ContextOwner, Team, refuse_dead_threads
from haversack.devices.trunk_placement import TrunkPlacement

_STATUS_NO_ROOM, _STATUS_ABORTED = 1, 2  # of llama_decode
_STATUS_REFUSED = -1  # the tokens are none: nothing was begun
_PARTIAL = 1  # LLAMA_STATE_SEQ_FLAGS_PARTIAL_ONLY: what attention's cells do not hold
_CELLS_UNIT = 256  # llama.cpp rounds the length of a sequence up to a multiple of it
# Of a pass in which every row has the bits of a single token; see offload/native/rows.cpp.
MOST_ROWS = 7
_LAST = -1  # of the rows that want logits
MOST_SEQUENCES = 64
EXACT_KV_TYPE = "f16"
KV_TYPES = {EXACT_KV_TYPE: 1, "q8_0": 8, "q4_0": 2}  # enum ggml_type of a cache's keys and values

# Is shown every node of a graph: (node, ask, None). `ask`: whether llama.cpp shall stop after it.
# Else it is computed: go on?
OnNode = Callable[[int, bool, object], bool]


@dataclass(frozen=True)
class ContextShape:
    """What decides a context's memory and speed: each of its `sequences` has room for `ctx_tokens`,
    of `kv_type` (KV_TYPES); a pass has at most `logit_rows` with logits. Raises PromptError."""

    ctx_tokens: int
    batch_tokens: int
    threads: int
    sequences: int = 1
    kv_type: str = EXACT_KV_TYPE
    logit_rows: int = MOST_ROWS

    def __post_init__(self) -> None:
        if self.kv_type not in KV_TYPES:
            raise PromptError(f"kv_type is {self.kv_type!r}: give one of {', '.join(KV_TYPES)}")

    @property
    def most_rows(self) -> int:
        """How many rows of a pass may want logits."""
        return min(self.logit_rows, self.batch_tokens)


class Row(NamedTuple):
    """One token of a pass: `position` is its place in `sequence`."""

    token: int
    position: int
    sequence: int
    wants_logits: bool


class _Results(NamedTuple):
    """What was computed after a row: logits (vocabulary,), and hidden (hidden,) if wanted."""

    logits: npt.NDArray[np.float32]
    hidden: npt.NDArray[np.float32] | None


# ---------------------------------------------------------------------- build
def system_info() -> str:
    """llama.cpp's line about itself: "CPU : AVX2 = 1 | FMA = 1 | ...", what it was built with."""
    return str(llama.llama_print_system_info().decode())


def build_name() -> str:
    """The package and version of the llama.cpp that is loaded: another one may compute other
    bits."""
    return f"{native.chosen.build.package} {native.chosen.build.version}"


# -------------------------------------------------------------------- context
def context_params(shape: ContextShape, placement: TrunkPlacement) -> Any:
    """struct llama_context_params of a context of that shape over a model placed so.

    Each sequence has cells of its own, as many as alone: its attention is as if no other were.
    """
    params = llama.llama_context_default_params()
    cells = -(-shape.ctx_tokens // _CELLS_UNIT) * _CELLS_UNIT
    params.n_ctx, params.n_seq_max = cells * shape.sequences, shape.sequences
    params.n_batch = params.n_ubatch = shape.batch_tokens  # equal: a pass is never split
    params.n_threads = params.n_threads_batch = shape.threads
    params.n_outputs_max = max(shape.logit_rows, shape.sequences)
    params.offload_kqv = placement.num_layers > 0
    params.op_offload = params.kv_unified = False
    params.type_k = params.type_v = KV_TYPES[shape.kv_type]
    # Else llama.cpp tries whether its own device computes it, and turns it off where ours does.
    params.flash_attn_type = llama.LLAMA_FLASH_ATTN_TYPE_ENABLED
    return params


class LlamaContext:
    """Sequences of tokens over a model, each with its own memory (KV cache, recurrent state).

    `compute` may be stopped by `stop` from any thread and by Ctrl-C.
    """

    def __init__(
        self,
        model: LlamaModel,
        shape: ContextShape,
        owner: ContextOwner | None = None,
        stop: StopFlag | None = None,
        on_node: OnNode | None = None,
    ) -> None:
        self.stop = stop or StopFlag()
        self.ctx_tokens = shape.ctx_tokens
        self._owner, self._vocabulary = owner, model.vocabulary
        # Whether passes may follow each other without Python in between.
        self.goes_on = on_node is None and (owner is None or owner.goes_on)
        self.drops_parts = model.drops_parts
        self._log = captured_logs()
        self._snapshots: dict[int, tuple[int, npt.NDArray[np.uint8]]] = {}  # by sequence
        self._computes_rows_alone = model.placement.needs_single_rows
        self._results: dict[int, _Results] = {}  # by row, if the rows were computed alone
        self.copied_to: int | None = None  # the latest target of `copy` since the last pass
        params = context_params(shape, model.placement)
        if on_node is not None:
            self._on_node = params.cb_eval = llama.ggml_backend_sched_eval_callback(on_node)
        self._on_abort = llama.ggml_abort_callback(lambda _: self.stop.requested)
        self._never = llama.ggml_abort_callback()
        self._hidden_size, self._gives_hidden = model.hidden_size, False
        self._may_abort = False  # whether llama.cpp calls `_on_abort` now
        self._context: Any = None
        # Why llama.cpp gave up in a pass. Its state is unknown from then on.
        self._broken: str | None = None
        self._birthplace = Birthplace()
        refuse_dead_threads(shape.threads)
        self._open(model, params)
        self._memory = llama.llama_get_memory(self._context)
        self._batch = Batch(int(llama.llama_n_batch(self._context)))
        self.steps = Steps(self._vocabulary.address, self._vocabulary.num_tokens)
        self._team = Team(shape.threads, self._context, self._batch.struct, owner)

    def _open(self, model: LlamaModel, params: Any) -> None:
        try:
            with captured_logs() as log, self.stop.listening():
                address = None if self._owner is None else self._owner.address
                self._context = guard.init_context(model.address, params, address)
        except KeyboardInterrupt:
            self.close()
            raise
        if not self._context:
            raise ModelFileError(
                f"llama.cpp cannot make a context of {self.ctx_tokens} tokens for {model.path}:"
                f" {log.reason()}; if memory is short, lower --ctx"
            )

    @property
    def batch_tokens(self) -> int:
        """How many tokens are computed at once at most."""
        return self._batch.most_rows

    def num_tokens(self, sequence: int = 0) -> int:
        """How many tokens the sequence has, as llama.cpp's own memory tells it: an interrupt
        cannot leave it wrong."""
        if self._broken is not None:
            return 0
        return int(llama.llama_memory_seq_pos_max(self._memory, sequence)) + 1

    def decode(self, tokens: Sequence[int], sequence: int = 0) -> None:
        """Append `tokens` (at most a batch) to `sequence`; only the last one wants logits.

        Raises as `compute`.
        """
        first, last = self.num_tokens(sequence), len(tokens) - 1
        self.compute([Row(t, first + i, sequence, i == last) for i, t in enumerate(tokens)])

    def compute(self, rows: Sequence[Row]) -> None:
        """Append `rows` (at most a batch) to their sequences, in one pass of llama.cpp, or in a
        pass for each of a few where the model's placement asks for it. The rows of a sequence go on
        from its last token, one after the other.

        Raises CancelledError, KeyboardInterrupt, ContextError, or what the owner says; then none
        of the rows is part of its sequence (see `forget`, which is called).
        """
        assert 0 < len(rows) <= self._batch.most_rows, f"{len(rows)} tokens are no batch"
        self._give_hidden(False)
        self._compute_rows(rows)

    def compute_hidden(self, rows: Sequence[Row]) -> None:
        """As `compute`, for rows that all want logits: `borrow_hidden` then gives what the last
        layer computed for each too."""
        self._give_hidden(True)
        self._compute_rows(rows)

    def go_on(self, row: Row, ahead: Ahead) -> None:
        """Append `row` to its sequence, and then what is `ahead`, in a pass each; `steps` say what
        that gave.

        Raises as `compute`. Then `steps.num_done` passes, which were computed before, stand.
        """
        self._give_hidden(False)
        self._results.clear()
        self.steps.begin(ahead)
        self._compute([row], partial(self._team.go_on, self.steps), self.steps)

    def _give_hidden(self, hidden: bool) -> None:
        if hidden != self._gives_hidden:
            llama.llama_set_embeddings(self._context, hidden)
            self._gives_hidden = hidden

    def _compute_rows(self, rows: Sequence[Row]) -> None:
        """Compute `rows` in one pass, or a few of them alone where their bits depend on it."""
        self._results.clear()
        if not (self._computes_rows_alone and 1 < len(rows) <= MOST_ROWS):
            self._compute(rows, partial(self._team.compute, len(rows)))
            return
        results: dict[int, _Results] = {}
        try:
            for place, row in enumerate(rows):
                self._compute([row], partial(self._team.compute, 1))
                if row.wants_logits:
                    results[place] = results[_LAST] = self._copied_results()
        except BaseException:
            self._forget_rows(rows)
            raise
        self._results = results

    def _copied_results(self) -> _Results:
        hidden = self.borrow_hidden(_LAST).copy() if self._gives_hidden else None
        return _Results(self.logits(), hidden)

    def _forget_rows(self, rows: Sequence[Row], num_done: int = 0) -> None:
        """Drop rows of a pass that failed, but for the first `num_done` of a sequence."""
        if self._broken is None:
            firsts = {row.sequence: row.position for row in reversed(rows)}
            for sequence, position in firsts.items():
                self.forget(position + num_done, sequence)

    def _compute(
        self, rows: Sequence[Row], run: Callable[[], int], steps: Steps | None = None
    ) -> None:
        self._check_usable()
        self._batch.fill(rows)
        try:
            self._run(rows, run)
        except BaseException:
            self._forget_rows(rows, 0 if steps is None else steps.num_done)
            raise

    def _check_usable(self) -> None:
        self._birthplace.check()
        if self._broken is not None:
            raise ClosedError(
                f"llama.cpp gave up in an earlier call ({self._broken}): close the model and load"
                " it again"
            )

    def _run(self, rows: Sequence[Row], run: Callable[[], int]) -> None:
        # llama.cpp calls this for each node, which costs time. A pass of a few rows is short, so it
        # runs without.
        may_abort = len(rows) > MOST_ROWS
        if may_abort != self._may_abort:
            callback = self._on_abort if may_abort else self._never
            llama.llama_set_abort_callback(self._context, callback, None)
            self._may_abort = may_abort
        team = self._team
        # The owner ends its pass inside the block: cut short by a second Ctrl-C it would keep the
        # error of this call for the next one.
        with self._log as log, self.stop.listening():
            status = run()
            if status != _STATUS_REFUSED:
                self.copied_to = None
            if team.gave_up:
                self._broken = guard.failure()
            error = self._owner.after_pass(team.failure) if self._owner is not None else None
        if self._broken is not None:
            raise AbortedError(
                f"llama.cpp gave up: {self._broken}; close the model and load it again"
            )
        if error is not None:
            raise error
        if status == _STATUS_ABORTED or self.stop.requested:
            raise CancelledError("the call was cancelled")
        if status != 0:
            raise _decode_error(status, len(rows), log)

    def logits(self, row: int = -1) -> npt.NDArray[np.float32]:
        """A copy of the logits after `row` of the latest pass, (vocabulary,) float32."""
        return self.borrow_logits(row).copy()

    def borrow_logits(self, row: int = -1) -> npt.NDArray[np.float32]:
        """The logits after `row` of the latest pass, which wanted them, (vocabulary,) float32,
        valid until the next pass. -1 is the last row that wanted them."""
        self._check_usable()
        if self._results:
            return self._results[row].logits
        return native.floats_at(
            llama.llama_get_logits_ith(self._context, row), self._vocabulary.num_tokens
        )

    def borrow_hidden(self, row: int) -> npt.NDArray[np.float32]:
        """What the last layer computed for `row` of the latest pass, (hidden,) float32, valid until
        the next pass. Raises PromptError for a model that does not tell it."""
        self._check_usable()
        if self._results and (hidden := self._results[row].hidden) is not None:
            return hidden
        address = llama.llama_get_embeddings_ith(self._context, row)
        if not address:
            raise PromptError("llama.cpp does not tell what this model's last layer computes")
        return native.floats_at(address, self._hidden_size)

    def forget(self, position: int, sequence: int = 0) -> None:
        """Drop the tokens of `sequence` from `position` on. Where `drops_parts` is False it goes
        back to its snapshot, if that was taken at `position` or before, or else drops all;
        `num_tokens` tells."""
        self._check_usable()
        if llama.llama_memory_seq_rm(self._memory, sequence, position, -1):
            return
        taken_at, state = self._snapshots.get(sequence, (0, None))
        if state is not None and taken_at <= position:
            address, length = native.bytes_of(state), len(state)
            size = llama.llama_state_seq_set_data_ext(
                self._context, address, length, sequence, _PARTIAL
            )
            if size == length and llama.llama_memory_seq_rm(self._memory, sequence, taken_at, -1):
                return
        self._snapshots.pop(sequence, None)
        llama.llama_memory_seq_rm(self._memory, sequence, -1, -1)

    # ------------------------------------------------------------------ copies
    def copy(self, source: int, target: int) -> None:
        """Have sequence `target` hold what `source` holds, with the same bits, in place of what it
        held. Only where `drops_parts`: of recurrent layers' states llama.cpp makes no copy here.

        llama.cpp copies the bytes at the beginning of its next pass. Until then `copied_to` is the
        target, and bytes of sequences must be neither read nor put.
        """
        self._check_usable()
        assert self.drops_parts and source != target, f"{source} is not copied to {target}"
        llama.llama_memory_seq_rm(self._memory, target, -1, -1)
        self.copied_to = target
        llama.llama_memory_seq_cp(self._memory, source, target, -1, -1)

    # --------------------------------------------------------------- snapshots
    def can_forget(self, position: int, sequence: int = 0) -> bool:
        """Whether `forget` leaves a token before `position`, or there is none."""
        if self.drops_parts or position in (0, self.num_tokens(sequence)):
            return True
        return sequence in self._snapshots and self._snapshots[sequence][0] <= position

    def snapshot_bytes(self, sequence: int = 0) -> int:
        """The memory of a snapshot that is taken now."""
        return int(llama.llama_state_seq_get_size_ext(self._context, sequence, _PARTIAL))

    def take_snapshot(self, sequence: int = 0) -> None:
        """Keep what recurrent layers hold of `sequence` now, in place of an earlier snapshot, for
        `forget` to go back to."""
        self._check_usable()
        state = np.empty(self.snapshot_bytes(sequence), np.uint8)
        address, length = native.bytes_of(state), len(state)
        llama.llama_state_seq_get_data_ext(self._context, address, length, sequence, _PARTIAL)
        self._snapshots[sequence] = self.num_tokens(sequence), state

    def drop_snapshot(self, sequence: int = 0) -> None:
        """Free the snapshot of `sequence`, if there is one."""
        self._snapshots.pop(sequence, None)

    @property
    def address(self) -> Any:
        return self._context

    def close(self) -> None:
        """Free the context; may be called twice."""
        if self._context:
            llama.llama_free(self._context)
            self._context = None


def _decode_error(status: int, num_tokens: int, log: LogCapture) -> Exception:
    if status == _STATUS_NO_ROOM:
        return ContextError(f"no room for {num_tokens} more tokens in the context: raise --ctx")
    return HaversackError(
        f"llama.cpp failed with status {status}: {log.reason()}; if memory is short, lower --batch"
        " or --ctx"
    )
