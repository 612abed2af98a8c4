"""Tokenizing texts of any length, on a stack that is large enough. Ctrl-C ends the wait.

llama.cpp splits a text by regular expressions. For some vocabularies they take hundreds of bytes of
stack for each character of a match: 60,000 equal letters would overflow a thread's stack. The bytes
for a character are measured on short texts, for each vocabulary.
"""

import time
from collections.abc import Sequence
from typing import Any

from haversack.devices import _native as native
from haversack.devices._native import own
from haversack.devices.errors import AbortedError, HaversackError, PromptError
from haversack.devices.guard import check_failure
from haversack.devices.units import format_bytes

LEAST_STACK_BYTES = 16 * 1024 * 1024  # stack that a text may take in any budget

# A text with no more than this is tokenized on the stack of the thread that asks.
_SHORT_RUN_CHARS = 500
_SHORT_TEXT_BYTES = 64 * 1024
_LOOK_S = 0.05  # how often a wait gives Python a chance to see Ctrl-C
_BASE_STACK_BYTES = 1024 * 1024
_PAGE_BYTES = 4096
_RESERVE = 1.25  # of what was measured
_PROBE_CHARS = 4000
_PROBE_STACK_BYTES = 32 * 1024 * 1024
# Texts of each kind of run, in the order of `longest_runs`.
_PROBES = (
    ("a b ", "A b1 "),
    ("a", "A", "aB", "7", "-", "_a", "\N{LATIN SMALL LETTER E WITH ACUTE}", "\u4e2d"),
    (" ", "\n", "\t", ".", "-.", " \n", "\N{SLIGHTLY SMILING FACE}", "\u3002"),
)
_TOKENIZE = native.llama_function("llama_tokenize")


class Tokenizer:
    """Turns UTF-8 into token ids, without a start or end token."""

    def __init__(self, vocab: Any) -> None:
        self._vocab = vocab
        self._stack_per_char: Sequence[float] = ()  # bytes, for each kind of run
        self._abandoned: list[_LongWork] = []

    def tokens(self, data: bytes, most_stack_bytes: int) -> list[int]:
        """Return the ids of `data`; special tokens written out in it count as such.

        Raises PromptError if it takes more than `most_stack_bytes` of stack, AbortedError, and in
        the main thread KeyboardInterrupt at once: the tokenizing then ends in the background.
        """
        runs = own.longest_runs_of(data)
        if len(data) <= _SHORT_TEXT_BYTES and max(runs) <= _SHORT_RUN_CHARS:
            return self._tokens_of_short(data)
        stack_bytes = self._stack_bytes(runs)
        if stack_bytes > most_stack_bytes:
            raise PromptError(
                f"the text has {max(runs):,} characters without a break, which take"
                f" {format_bytes(stack_bytes)} of stack to split for this vocabulary,"
                f" {format_bytes(most_stack_bytes)} are left: break them up or raise --ram"
            )
        return self._tokens_of_long(_LongWork(self._vocab, data, stack_bytes))

    @property
    def is_busy(self) -> bool:
        """Return whether work that was abandoned still uses the vocabulary."""
        self._abandoned = [work for work in self._abandoned if not work.ended(0)]
        return bool(self._abandoned)

    def settle(self) -> None:
        """Wait for the work that was abandoned, so that the vocabulary can be freed."""
        while self.is_busy:
            time.sleep(_LOOK_S)

    def _tokens_of_short(self, data: bytes) -> list[int]:
        room = len(data) + 16
        while True:
            buffer = native.int32_buffer(room)
            count = own.tokenize_here(_TOKENIZE, self._vocab, data, len(data), buffer, room)
            check_failure()
            if count >= 0:
                return list(buffer[:count])
            room = -count

    def _tokens_of_long(self, work: "_LongWork") -> list[int]:
        try:
            while not work.ended(_LOOK_S):
                pass
        except BaseException:
            self._abandoned.append(work)
            raise
        return work.tokens()

    # ------------------------------------------------------------------- stack
    def _stack_bytes(self, runs: Sequence[int]) -> int:
        """Return the stack for a text whose longest runs have these numbers of characters."""
        if not self._stack_per_char:
            least_bytes = self._used_stack_bytes("a b. c")
            self._stack_per_char = [
                max(self._per_char(text, least_bytes) for text in texts) for texts in _PROBES
            ]
        needs = zip(runs, self._stack_per_char, strict=True)
        return _BASE_STACK_BYTES + int(_RESERVE * max(chars * each for chars, each in needs))

    def _per_char(self, text: str, least_bytes: int) -> float:
        repeated = text * (_PROBE_CHARS // len(text))
        more_bytes = self._used_stack_bytes(repeated) - least_bytes
        # Where nothing recurses, a page or two more make the difference.
        return more_bytes / len(repeated) if more_bytes > 4 * _PAGE_BYTES else 0.0

    def _used_stack_bytes(self, text: str) -> int:
        work = _LongWork(self._vocab, text.encode(), _PROBE_STACK_BYTES)
        self._tokens_of_long(work)
        return work.used_stack_bytes


class _LongWork:
    """One text on a thread of its own."""

    def __init__(self, vocab: Any, data: bytes, stack_bytes: int) -> None:
        self.used_stack_bytes = 0
        self._work = 0
        work, error = own.start_tokenizing(_TOKENIZE, vocab, data, stack_bytes)
        if not work:
            raise HaversackError(
                f"no thread with {format_bytes(stack_bytes)} of stack can be had (error {error}) to"
                " tokenize the text: give the process more memory, or break the text up"
            )
        self._work = work

    def ended(self, timeout_s: float) -> bool:
        """Wait at most `timeout_s`. Return whether it has ended."""
        return bool(own.tokenizing_wait(self._work, timeout_s))

    def tokens(self) -> list[int]:
        """Return the token ids, once it has ended. Raises AbortedError."""
        found, failure, self.used_stack_bytes = own.tokenizing_result(self._work)
        if found is None:
            raise AbortedError(f"llama.cpp gave up on the text: {failure}")
        return found

    def __del__(self) -> None:
        if self._work:
            own.tokenizing_let_go(self._work)
