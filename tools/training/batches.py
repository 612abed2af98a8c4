"""Training batches: documents in a seeded order, as one long row of ids cut into windows."""

import random
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from haversack.tools.training.corpus import Source
from haversack.tools.training.vocabulary import END_OF_TEXT_ID, Vocabulary

Ids = npt.NDArray[np.uint16]


def token_row(sources: Sequence[Source], vocabulary: Vocabulary, seed: int) -> Ids:
    """Return all documents as one row of ids, (tokens,) uint16: each as often as it repeats, in an
    order that `seed` decides, with an end-of-text piece after it."""
    documents = [text for source in sources for text in source.documents * source.repeats]
    random.Random(seed).shuffle(documents)
    rows = vocabulary.encode_all(documents)
    return np.fromiter((i for row in rows for i in (END_OF_TEXT_ID, *row)), np.uint16)


def windows_at(
    ids: Ids, starts: npt.NDArray[np.int64], window_tokens: int
) -> npt.NDArray[np.int64]:
    """Return `window_tokens` + 1 ids from each of `starts` (W,) on: the last one is only
    predicted."""
    windows: npt.NDArray[np.int64] = ids[starts[:, None] + np.arange(window_tokens + 1)].astype(
        np.int64
    )
    return windows


def windows_of(ids: Ids, window_tokens: int, most_tokens: int) -> npt.NDArray[np.int64]:
    """Return windows of `window_tokens` + 1 tokens (W, window_tokens + 1), spread over all of
    `ids`."""
    num_windows = max(1, min(most_tokens, len(ids) - 1) // window_tokens)
    last_start = len(ids) - 1 - window_tokens
    if last_start < 0:
        raise ValueError(f"{len(ids)} tokens of text are no window of {window_tokens} + 1")
    starts = np.linspace(0, last_start, num_windows).astype(np.int64)
    return windows_at(ids, starts, window_tokens)


class Batches:
    """Batches of a token row, one after the other, from the start again when it ends."""

    def __init__(self, ids: Ids, window_tokens: int, batch_tokens: int) -> None:
        if len(ids) <= batch_tokens:
            raise ValueError(f"{len(ids)} tokens of text are too few for a batch of {batch_tokens}")
        self._ids = ids
        self._window_tokens = window_tokens
        self._num_windows = batch_tokens // window_tokens

    def batch(self, index: int) -> npt.NDArray[np.int64]:
        """Return windows with one token more than their inputs: (windows, window_tokens + 1)."""
        span = self._num_windows * self._window_tokens
        start = index * span % (len(self._ids) - span)
        starts = start + np.arange(self._num_windows) * self._window_tokens
        return windows_at(self._ids, starts, self._window_tokens)

    def spread(self) -> npt.NDArray[np.int64]:
        """Return as many windows as a batch has, spread over the whole row instead of side by
        side."""
        return windows_of(self._ids, self._window_tokens, self._num_windows * self._window_tokens)
