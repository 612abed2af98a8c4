"""Lessons: stretches of accepted text in the drafter's tokens, with what the target thought there.

A draft token that has the text of the target's next token is direct: of its place the target's
likeliest tokens are kept, as far as the drafter has tokens with their texts. Tokens of a run that
has several on either side are split: of those the text alone is kept.

Axis letters: T draft tokens, N direct places, K tokens of a place.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from haversack.cache.cross_vocab import aligned
from haversack.edge.draft_text import OtherText, Vocabularies
from haversack.edge.sequence import Logits

NEW_TOKENS = 64  # of a lesson: those that the target chose
CONTEXT_TOKENS = 64  # before them
_LEAST_NEW = 8  # fewer make no lesson
MOST_LIKELY = 32  # tokens of a place that are kept
_LEAST_LOGIT = 9.0  # below the best: less than a ten-thousandth of its chance

Ids = npt.NDArray[np.int32]
Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Lesson:
    """`tokens` (T,) are the drafter's. Those at `direct` (N,) had the likeliest tokens `ids` (N, K)
    with the logarithms of their chances `logprobs` (N, K), -inf where there are fewer. Those at
    `split` are parts of runs."""

    tokens: Ids
    direct: Ids
    ids: Ids
    logprobs: Floats
    split: Ids


@dataclass(frozen=True)
class Likely:
    """The target's likeliest tokens at a place and the logarithms of their chances."""

    ids: npt.NDArray[np.int64]
    logprobs: Floats


def likely(logits: Logits) -> Likely:
    """Return the likeliest tokens of `logits` (V,)."""
    best = float(logits.max())
    near = np.flatnonzero(logits > best - _LEAST_LOGIT)
    if len(near) > MOST_LIKELY:
        near = near[np.argpartition(logits[near], -MOST_LIKELY)[-MOST_LIKELY:]]
    total = best + float(np.log(np.exp(logits - best).sum(dtype=np.float64)))
    return Likely(near, logits[near] - np.float32(total))


class Maker:
    """Makes lessons for the drafter of two vocabularies."""

    def __init__(self, vocabularies: Vocabularies) -> None:
        self._both = vocabularies
        self._twins: Ids | None = None

    @property
    def twins(self) -> Ids:
        """Return for each token of the target the draft token with its text, -1 if there is
        none."""
        if self._twins is None:
            both = self._both
            self._twins = np.full(both.target.num_tokens, -1, np.int32)
            if both.are_same:
                self._twins[:] = np.arange(both.target.num_tokens)
            else:
                known = np.flatnonzero(both.same >= 0)
                self._twins[both.same[known]] = known
        return self._twins

    def made(self, text: Sequence[int], thoughts: Sequence[Likely]) -> Lesson | None:
        """Return the lesson of a text whose last tokens the target chose by `thoughts`, one for
        each; None if nothing is learnt from it."""
        first = len(text) - len(thoughts)
        tokens, runs = self._runs(text)
        direct, split, rows = list[int](), list[int](), list[Likely]()
        for draft_run, target_run in runs:
            if target_run.start < first or draft_run.start == 0:
                continue
            places = range(draft_run.start, draft_run.stop)
            if len(places) == 1 and target_run.stop - target_run.start == 1:
                direct += places
                rows.append(thoughts[target_run.start - first])
            else:
                split += places
        if not direct and not split:
            return None
        ids, logprobs = self._table(rows)
        found = [np.array(each, np.int32) for each in (tokens, direct, split)]
        return Lesson(found[0], found[1], ids, logprobs, found[2])

    def _runs(self, text: Sequence[int]) -> tuple[list[int], list[tuple[slice, slice]]]:
        both = self._both
        if both.are_same:
            places = [slice(place, place + 1) for place in range(len(text))]
            return list(text), list(zip(places, places, strict=True))
        other = OtherText(both, 0)
        tokens = other.follow(text)
        before = len(tokens) - len(other.pieces)
        target = both.target
        pieces = [target.piece(token) or target.piece(token, special=True) for token in text]
        return tokens, [
            (slice(draft.start + before, draft.stop + before), run)
            for draft, run in aligned(other.pieces, pieces)
        ]

    def _table(self, rows: Sequence[Likely]) -> tuple[Ids, Floats]:
        ids = np.zeros((len(rows), MOST_LIKELY), np.int32)
        logprobs = np.full((len(rows), MOST_LIKELY), -np.inf, np.float32)
        for idx, row in enumerate(rows):
            twins = self.twins[row.ids]
            known = twins >= 0
            number = int(known.sum())
            ids[idx, :number], logprobs[idx, :number] = twins[known], row.logprobs[known]
        return ids, logprobs


class Notes:
    """What is kept of a text until it makes a lesson."""

    def __init__(self, text: Sequence[int]) -> None:
        self._text, self._thoughts = list(text[-CONTEXT_TOKENS:]), list[Likely]()

    def note(self, logits: Logits, token: int) -> bool:
        """Note that `token` was chosen by `logits`; return whether a lesson is due."""
        self._thoughts.append(likely(logits))
        self._text.append(token)
        return len(self._thoughts) >= NEW_TOKENS

    def taken(self, maker: Maker) -> Lesson | None:
        """Return the lesson of what was noted, if that is enough, and begin another one."""
        text, thoughts = self._text, self._thoughts
        self._text, self._thoughts = text[-CONTEXT_TOKENS:], []
        return maker.made(text, thoughts) if len(thoughts) >= _LEAST_NEW else None
