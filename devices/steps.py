"""Steps: passes of one row each, which follow each other without Python in between."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from haversack.devices import _native as native
from haversack.devices._native import own

MOST_STEPS = 32
MOST_S = 0.01  # nobody notices that tokens come together, or that a call stops so much later
_MOST_LOGITS_BYTES = 1 << 20

_LOGITS_AFTER = native.llama_function("llama_get_logits_ith")
_ENDS = native.llama_function("llama_vocab_is_eog")


class Watch(NamedTuple):
    """A native function that is told of each token that was chosen, and says whether its pass is
    left to the caller: the addresses of `bool stops(void *data, int32_t token)` and of `data`."""

    stops: int
    data: int


class Ahead(NamedTuple):
    """What to compute from a row on, one pass for each token: the tokens `given`, whose logits are
    wanted, or else at most `most` tokens, each the likeliest after the one before, until the text
    ends or `watch` says so. The row itself is the first of them."""

    most: int
    given: Sequence[int] = ()
    most_s: float = MOST_S  # no pass begins later
    watch: Watch | None = None


class Steps:
    """Passes of one row, of which each computes the token after the one before it.

    Between two passes of a small model Python takes as long as a tenth of a pass, so these are
    computed by one call. What they gave is valid until the next call, but for the logits.
    """

    def __init__(self, vocabulary: Any, num_logits: int) -> None:
        """`vocabulary` is llama.cpp's address of it."""
        self._given = np.empty(MOST_STEPS, np.int32)
        self._likeliest = np.empty(MOST_STEPS, np.int32)
        self._logits: npt.NDArray[np.float32] | None = None
        self._struct = own.Steps(_LOGITS_AFTER, _ENDS, vocabulary, num_logits)
        self._struct.likeliest = native.address_of(self._likeliest)
        self._given_address = native.address_of(self._given)
        self.address = native.addressof(self._struct)

    def begin(self, ahead: Ahead) -> None:
        """Compute `ahead` next."""
        struct, given = self._struct, ahead.given
        struct.num_done, struct.most_s = 0, ahead.most_s
        struct.stops, struct.watch = ahead.watch or (None, None)
        struct.most = min(len(given) or ahead.most, MOST_STEPS)
        struct.given, self._logits = None, None
        if given:
            row_bytes = 4 * struct.num_logits
            struct.most = max(1, min(struct.most, _MOST_LOGITS_BYTES // row_bytes))
            self._given[: struct.most] = given[: struct.most]
            self._logits = np.empty((struct.most, struct.num_logits), np.float32)
            struct.given, struct.logits = self._given_address, native.address_of(self._logits)

    def limit(self) -> None:
        """Compute one pass only."""
        self._struct.most = 1

    @property
    def num_done(self) -> int:
        """How many passes were computed."""
        return int(self._struct.num_done)

    @property
    def passes_s(self) -> float:
        """The seconds that they took together."""
        return float(self._struct.passes_s)

    @property
    def first_s(self) -> float:
        """The seconds of the first one, for which llama.cpp may have made its graph anew."""
        return float(self._struct.first_s)

    @property
    def likeliest(self) -> list[int]:
        """The token after each pass, if none were given; -1 where the logits are not finite."""
        found: list[int] = self._likeliest[: self.num_done].tolist()
        return found

    @property
    def logits(self) -> Sequence[npt.NDArray[np.float32]]:
        """The logits after each given token, (vocabulary,) float32."""
        assert self._logits is not None
        return list(self._logits[: self.num_done])
