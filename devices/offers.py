"""Tokens that another model offers: taken or replaced so that each token stays as likely as it is
without offers (speculative sampling, arXiv 2211.17192)."""

from random import Random
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

_MOST_OFFERED = 1024  # tokens

Ids = npt.NDArray[np.int32]
Shares = npt.NDArray[np.float64]


class Offer(NamedTuple):
    """A token that was drawn from `ids`, with the probabilities `shares`, (n,) each. Whether it is
    made must not depend on which token was drawn."""

    token: int
    ids: Ids
    shares: Shares

    def decided(self, ids: Ids, shares: Shares, random: Random) -> int:
        """Return the next token of a text in which `ids` have the probabilities `shares`: the
        offered one with the chance p/q, else one drawn from what p has more than q."""
        p, q = _share_of(self.token, ids, shares), _share_of(self.token, self.ids, self.shares)
        if random.random() * q < p:
            return self.token
        more = shares.copy()
        places = np.flatnonzero(np.isin(ids, self.ids))  # few: an offer has few ids
        order = np.argsort(self.ids)
        offered = order[np.searchsorted(self.ids, ids[places], sorter=order)]
        more[places] = np.maximum(shares[places] - self.shares[offered], 0)
        return drawn(ids, more if more.any() else shares, random)


def likeliest(ids: Ids, shares: Shares) -> tuple[Ids, Shares]:
    """Return at most 1024 of `ids`, those with the largest `shares`, and their shares of these
    alone. Offers may be drawn from any tokens, so that they need not hold a vocabulary."""
    if len(ids) > _MOST_OFFERED:
        places = np.argpartition(shares, -_MOST_OFFERED)[-_MOST_OFFERED:]
        ids, shares = ids[places], shares[places] / shares[places].sum()
    return ids, shares


def drawn(ids: Ids, weights: Shares, random: Random) -> int:
    """Return one of `ids`, each as likely as its weight says, (n,) each."""
    sums = np.cumsum(weights)
    place = int(np.searchsorted(sums, random.random() * sums[-1], side="right"))
    return int(ids[min(place, int(np.flatnonzero(weights)[-1]))])


def _share_of(token: int, ids: Ids, shares: Shares) -> float:
    return float(shares[ids == token].sum())
