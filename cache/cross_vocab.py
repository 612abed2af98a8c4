"""Drafts of a model with another vocabulary: which tokens of the target its tokens stand for.

Tokens with the same text stand for each other. Where the two vocabularies cut a text differently, a
run of draft tokens and a run of target tokens have the same text: such pairs are learnt from text
that the target has read or chosen, and found again in later drafts (the n-gram cache of OmniDraft,
arXiv 2507.02659, for runs on both sides). All of it is plain integers.
"""

from array import array
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from math import prod
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from haversack.cache.ngram import Draft

MOST_RUN = 8  # tokens of a run
STORE_BYTES = 4 << 20
_ENTRY_BYTES = 280  # of a pair in memory, at most: the bytes of two runs, and a place
_TOKEN_BYTES = 4
_BUILD_BYTES = 48  # of a draft token, while the same texts are looked for
_PIECES_AT_ONCE = 4096  # of the target
_IN_RUN_RATE = 0.98  # how often a target token is right where its run began right

Tokens = tuple[int, ...]


class Pair(NamedTuple):
    """Runs of tokens with the same text."""

    draft: Tokens
    target: Tokens


def tables_bytes(num_draft_tokens: int, store_bytes: int) -> int:
    """Return the most memory that the map of tokens with the same text and a store of pairs take.
    The store fills after the map was made."""
    kept_bytes = _TOKEN_BYTES * num_draft_tokens
    return max(_BUILD_BYTES * num_draft_tokens, kept_bytes + store_bytes)


def same_texts(
    draft_pieces: Iterable[bytes], target_pieces: Iterable[bytes]
) -> npt.NDArray[np.int32]:
    """Return for each draft token the last target token with its text, -1 if there is none.

    Pieces are compared by hashes of 64 bits, so that they need not be held: a wrong pair would
    cost a wrong draft, no more.
    """
    hashes = np.fromiter(map(hash, draft_pieces), np.int64)
    order = np.argsort(hashes, kind="stable")
    hashes = hashes[order]
    found = np.full(len(hashes) + 1, -1, np.int32)  # the last: of pieces that are not there
    token, left = 0, iter(target_pieces)
    while pieces := list(islice(left, _PIECES_AT_ONCE)):
        wanted = np.fromiter(map(hash, pieces), np.int64, len(pieces))
        places = np.searchsorted(hashes, wanted)
        is_there = hashes[np.minimum(places, len(hashes) - 1)] == wanted
        places[~is_there] = len(hashes)
        found[places] = np.arange(token, token + len(pieces), dtype=np.int32)
        token += len(pieces)
    found = found[np.searchsorted(hashes, hashes)]  # tokens with equal pieces
    found[hashes == hash(b"")] = -1
    return found[np.argsort(order)]


def aligned(draft: Sequence[bytes], target: Sequence[bytes]) -> Iterator[tuple[slice, slice]]:
    """Yield which pieces have the same text, in the smallest runs: both begin at the same place."""
    begun_draft = begun_target = draft_bytes = target_bytes = idx = 0
    for number, piece in enumerate(target):
        target_bytes += len(piece)
        while idx < len(draft) and draft_bytes + len(draft[idx]) <= target_bytes:
            draft_bytes += len(draft[idx])
            idx += 1
        if draft_bytes == target_bytes and idx > begun_draft:
            yield slice(begun_draft, idx), slice(begun_target, number + 1)
            begun_draft, begun_target = idx, number + 1


class PairStore:
    """The learnt pairs of two vocabularies. The one that was not used for longest makes room."""

    def __init__(self, most_bytes: int = STORE_BYTES) -> None:
        self._most = most_bytes // _ENTRY_BYTES
        self._pairs: OrderedDict[bytes, bytes] = OrderedDict()  # tokens of 4 bytes

    def __len__(self) -> int:
        return len(self._pairs)

    def learn(self, pair: Pair) -> None:
        """Note that the runs have the same text."""
        if max(map(len, pair)) > MOST_RUN:
            return
        run = _packed(pair.draft)
        self._pairs[run] = _packed(pair.target)
        self._pairs.move_to_end(run)
        while len(self._pairs) > self._most:
            self._pairs.popitem(last=False)

    def find(self, tokens: Sequence[int]) -> Pair | None:
        """Return the pair of the longest run of draft tokens that `tokens` begin with."""
        data = _packed(tokens[:MOST_RUN])
        for end in range(len(data), 0, -_TOKEN_BYTES):
            run = data[:end]
            target = self._pairs.get(run)
            if target is not None:
                self._pairs.move_to_end(run)
                return Pair(_unpacked(run), _unpacked(target))
        return None

    def to_bytes(self) -> bytes:
        """Return the pairs as they are kept in a file, the one that was used last at the end."""
        runs = [map(_unpacked, pair) for pair in self._pairs.items()]
        numbers = [
            number
            for draft, target in runs
            for number in (len(draft), len(target), *draft, *target)
        ]
        return np.array(numbers, "<i4").tobytes()

    def read(self, data: bytes, num_draft_tokens: int, num_target_tokens: int) -> None:
        """Learn the pairs that `to_bytes` gave. Raises ValueError for what it did not give."""
        numbers, place = np.frombuffer(data, "<i4").tolist(), 0
        while place < len(numbers):
            lengths = numbers[place : place + 2]
            if len(lengths) < 2 or not all(1 <= length <= MOST_RUN for length in lengths):
                raise ValueError("its pairs have wrong lengths")
            middle = place + 2 + lengths[0]
            draft = tuple(numbers[place + 2 : middle])
            target = tuple(numbers[middle : middle + lengths[1]])
            place = middle + lengths[1]
            is_whole = [len(draft), len(target)] == lengths
            known = _are_tokens(draft, num_draft_tokens) and _are_tokens(target, num_target_tokens)
            if not (is_whole and known):
                raise ValueError("its pairs have wrong tokens")
            self.learn(Pair(draft, target))


def _packed(tokens: Sequence[int]) -> bytes:
    return array("i", tokens).tobytes()


def _unpacked(data: bytes) -> Tokens:
    return tuple(array("i", data))


def _are_tokens(run: Tokens, num_tokens: int) -> bool:
    return all(0 <= token < num_tokens for token in run)


def translated(
    draft: Draft, same: npt.NDArray[np.int32], pairs: PairStore | None = None
) -> tuple[Draft, int]:
    """Return the target tokens that a draft stands for, as far as they are known, and how many of
    its tokens are unknown at its end.

    A run's rate is the product of its tokens' rates. Its first token may also stand for a target
    token by itself, at the rate that the run leaves over. The likelier of the two is taken. Without
    `pairs`, only tokens with the same text are known.
    """
    tokens, rates, place = list[int](), list[float](), 0
    while place < len(draft.tokens):
        pair = None if pairs is None else pairs.find(draft.tokens[place : place + MOST_RUN])
        alone, alone_rate = int(same[draft.tokens[place]]), draft.rates[place]
        if pair is not None:
            run_rate = prod(draft.rates[place : place + len(pair.draft)])
            if alone < 0 or len(pair.draft) == 1 or run_rate >= alone_rate - run_rate:
                tokens += pair.target
                rates += [run_rate, *[_IN_RUN_RATE] * (len(pair.target) - 1)]
                place += len(pair.draft)
                continue
            alone_rate -= run_rate
        if alone < 0:
            break
        tokens.append(alone)
        rates.append(alone_rate)
        place += 1
    return Draft(tokens, rates), len(draft.tokens) - place
