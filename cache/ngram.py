"""Drafts without a model: how a text may go on, from what it and earlier texts of the model said.

Two sources propose the next token: the place where the longest end of the text stood before (a
suffix automaton of prompt and output), and a table of what followed the last 4, 2 or 1 tokens in
all texts of the model. Both say how often such a proposal was right: each token of an output is
compared with what would have been proposed, by the length of the match or the count of the table's
entry, whether a draft was computed or not. native/drafter.cpp does it.
"""

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from haversack.cache import _native as native
from haversack.devices.steps import Watch

TABLE_BYTES = 1 << 20
_DRAFTER_BYTES = 40 << 10  # of a text: rest of pages, and what is handed over to our library
MOST_TOKENS = 1 << 17  # of a text that are matched; a longer one loses its older half

# How often proposals are right until outcomes are known: by the length of the match (1, 2, 3, 4, 5,
# 6, 8, 12, 16, 32 and more), then by the count of the table's entry (1, 2, 4 and more) for each
# number of tokens before it.
_FIRST_RATES = [0.2, 0.3, 0.4, 0.5, 0.5, 0.5, 0.6, 0.7, 0.8, 0.9]
_FIRST_TABLE_RATES = [0.2, 0.3, 0.4, 0.3, 0.4, 0.5, 0.4, 0.5, 0.7]

_FIRST_OUTCOMES = 4.0  # that these count for
_FIRST = [[rate, _FIRST_OUTCOMES] for rate in _FIRST_RATES + _FIRST_TABLE_RATES]


def text_bytes(ctx_tokens: int) -> int:
    """Return the most memory that the drafter of a text takes beside the shared memory."""
    return int(native.suffixes_bytes(_most_tokens(ctx_tokens))) + _DRAFTER_BYTES


def _most_tokens(ctx_tokens: int) -> int:
    return max(2, min(ctx_tokens, MOST_TOKENS))


class NgramMemory:
    """What all drafters of a model share: the table, and how often proposals were right."""

    def __init__(self, table_bytes: int = TABLE_BYTES) -> None:
        self.table: npt.NDArray[np.uint64] = np.zeros(table_bytes // 8, np.uint64)
        self.rates = np.array(_FIRST, np.float64)  # (kinds, 2): a rate, and its outcomes

    def clear(self) -> None:
        """Forget all texts and outcomes."""
        self.table[:] = 0
        self.rates[:] = _FIRST


class Draft(NamedTuple):
    """Tokens that may come next. `rates` say how often such a token was right where those before it
    were."""

    tokens: Sequence[int]
    rates: Sequence[float]


NONE = Draft((), ())


class Drafter(Protocol):
    """Drafts how one text goes on."""

    def propose(self, text: Sequence[int], most: int) -> Draft:
        """Return how `text` may go on, at most `most` tokens. Each call's text continues the
        text of the call before."""
        ...

    def close(self) -> None:
        """Free its memory; may be called twice."""
        ...


class NgramDrafter:
    """Drafts how one text goes on. One thread at a time may use the drafters of a memory."""

    def __init__(self, memory: NgramMemory, ctx_tokens: int, num_given: int, most: int) -> None:
        """The first `num_given` tokens are a prompt: its outcomes say nothing of outputs. A draft
        has at most `most` tokens."""
        self._memory = memory
        table, rates = memory.table, memory.rates
        self._drafter = native.drafter_new(
            _most_tokens(ctx_tokens), num_given, table.ctypes.data, len(table), rates.ctypes.data
        )
        # made once, because a call is to take a few microseconds
        self._one, self._tokens = native.int_array([0]), native.int_array([0] * most)
        self._rates, self._needs = native.double_array(most), native.double_array(most)
        self._watch = native.watch(self._drafter, self._needs)

    def propose(self, text: Sequence[int], most: int) -> Draft:
        """Return how `text` may go on, at most `most` tokens. Each call's text continues the
        text of the call before; a new token costs about a microsecond."""
        num_seen, new = native.drafter_num_tokens(self._drafter), self._one
        num_new = len(text) - num_seen
        if num_new == 1:
            new[0] = text[-1]
        else:
            new = native.int_array(text[num_seen:])
        found = native.drafter_propose(self._drafter, new, num_new, self._tokens, self._rates, most)
        return Draft(self._tokens[:found], self._rates[:found]) if found else NONE

    def has_read(self, text: Sequence[int]) -> bool:
        """Return whether it has read all of `text`, of which it was given the beginning."""
        return int(native.drafter_num_tokens(self._drafter)) == len(text)

    def watch(self, needs: Sequence[float]) -> Watch:
        """Return what reads on for `propose` and stops where a draft may pay: where the chances to
        be kept of its first 1, 2, ... tokens add up to what one of `needs` says. Valid until the
        next call."""
        number = min(len(needs), len(self._needs))
        self._needs[:number] = needs[:number]
        self._watch.most = number
        return Watch(native.DRAFTER_STOPS, self._watch.address)

    @property
    def match_length(self) -> int:
        """Return how long an end of the text also stands earlier in it."""
        return int(native.drafter_match_length(self._drafter))

    def close(self) -> None:
        """Free its memory; may be called twice."""
        if self._drafter:
            native.drafter_delete(self._drafter)
            self._drafter = None
