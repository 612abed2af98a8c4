"""A text in the tokens of the model that drafts, and drafts in the tokens of the target."""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt

from haversack.cache.cross_vocab import Pair, PairStore, aligned, same_texts, translated
from haversack.cache.ngram import Draft
from haversack.devices.errors import ModelFileError
from haversack.devices.vocabulary import Vocabulary
from haversack.edge.draft_source import DraftVocabulary

_BLANKS = (b" ", b"\n", b"\t")
_CUT_BACK = 24  # draft tokens: a text is cut anew from a blank among them, if there is one


class DraftText(Protocol):
    """A text in the drafter's tokens."""

    def follow(self, text: Sequence[int]) -> list[int]:
        """Return the text, which goes on from that of the call before, in the drafter's tokens."""
        ...

    def translate(self, draft: Draft) -> tuple[Draft, int]:
        """Return a draft in the target's tokens, as far as it is known, and how many of its tokens
        are not."""
        ...


class SameText:
    """Both models have the same vocabulary. The text's tokens before `first` are left out."""

    def __init__(self, first: int) -> None:
        self._first = first

    def follow(self, text: Sequence[int]) -> list[int]:
        return list(text[self._first :])

    def translate(self, draft: Draft) -> tuple[Draft, int]:
        return draft, 0


class Vocabularies:
    """The vocabularies of a target and of its drafter, and what is known of both."""

    same: npt.NDArray[np.int32]

    def __init__(self, target: Vocabulary, draft: DraftVocabulary, pairs: PairStore) -> None:
        """Raises ModelFileError where one of them has no texts, unless both are equally large."""
        self.target, self.draft, self.pairs = target, draft, pairs
        if not (draft.has_text and target.has_text):
            self._refuse_unlike()
            self.are_same, self.name = True, ""
            return
        digests = hashlib.sha256(), hashlib.sha256()
        self.same = same_texts(
            _pieces(draft, digests[0].update), _pieces(target, digests[1].update)
        )
        own, other = (digest.hexdigest() for digest in digests)
        self.are_same, self.name = own == other, own + other

    def _refuse_unlike(self) -> None:
        numbers = self.target.num_tokens, self.draft.num_tokens
        if self.target.has_text or self.draft.has_text or len(set(numbers)) > 1:
            raise ModelFileError(
                "the drafter's tokens cannot be compared with the model's: one has no vocabulary"
                f" ({numbers[1]} and {numbers[0]} tokens), give another drafter"
            )

    def text(self, first: int) -> DraftText:
        """Return a text that begins with the target's token number `first`."""
        return SameText(first) if self.are_same else OtherText(self, first)


def _pieces(vocabulary: DraftVocabulary, add: Callable[[bytes], None]) -> Iterator[bytes]:
    """Yield the text of each token, and `add` it to a digest."""
    for token in range(vocabulary.num_tokens):
        piece = vocabulary.piece(token)
        add(len(piece).to_bytes(4, "little") + piece)
        yield piece


class OtherText:
    """The text is cut into the drafter's tokens. Where it goes on, its end is cut anew, because the
    tokens of a text's end depend on what follows. Runs with the same text are learnt on the way."""

    def __init__(self, vocabularies: Vocabularies, first: int) -> None:
        self._both, self._num_seen = vocabularies, first
        draft = vocabularies.draft
        self._before = draft.tokenize("", add_special=True)  # a start token, or nothing
        self._tokens, self._pieces = list[int](), list[bytes]()
        self._targets, self._target_pieces = list[int](), list[bytes]()  # not learnt from yet
        self._num_learnt = 0  # draft tokens
        self._blanks = (b" ",) if draft.adds_space else _BLANKS

    @property
    def pieces(self) -> Sequence[bytes]:
        """Return the texts of its tokens, without the one at the start."""
        return self._pieces

    def follow(self, text: Sequence[int]) -> list[int]:
        new = text[self._num_seen :]
        self._num_seen = len(text)
        target = self._both.target
        pieces = [target.piece(token) or target.piece(token, special=True) for token in new]
        kept = self._cut()
        data = b"".join([*self._pieces[kept:], *pieces])
        del self._tokens[kept:], self._pieces[kept:]
        self._append(data)
        self._targets += new
        self._target_pieces += pieces
        self._learn()
        has_start = self._tokens[: len(self._before)] == self._before
        return list(self._tokens) if has_start else [*self._before, *self._tokens]

    def _cut(self) -> int:
        """Return how many draft tokens stay as they are: those before a blank near the end."""
        least = max(0, len(self._pieces) - _CUT_BACK)
        for number in range(len(self._pieces) - 1, least, -1):
            if self._pieces[number].startswith(self._blanks):
                return number
        return 0 if self._both.draft.adds_space else least

    def _append(self, data: bytes) -> None:
        draft = self._both.draft
        given = data.removeprefix(b" ") if draft.adds_space else data
        tokens = draft.cut(given)
        pieces = [draft.piece(each) or draft.piece(each, special=True) for each in tokens]
        if given == data and draft.adds_space and pieces:
            pieces[0] = pieces[0].removeprefix(b" ")  # it is none of the text
        self._tokens += tokens
        self._pieces += pieces

    def _learn(self) -> None:
        """Learn what the draft tokens that stay before the next cut have in common with the text's
        own."""
        settled = self._cut()
        begun, both = self._num_learnt, self._both
        end_draft, end_target = begun, 0
        for draft_run, target_run in aligned(self._pieces[begun:settled], self._target_pieces):
            draft = tuple(self._tokens[begun + draft_run.start : begun + draft_run.stop])
            target = tuple(self._targets[target_run])
            if len(draft) > 1 or len(target) > 1:
                both.pairs.learn(Pair(draft, target))
            end_draft, end_target = begun + draft_run.stop, target_run.stop
        self._num_learnt = end_draft
        del self._targets[:end_target], self._target_pieces[:end_target]

    def translate(self, draft: Draft) -> tuple[Draft, int]:
        return translated(draft, self._both.same, self._both.pairs)
