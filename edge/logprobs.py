"""How likely the model thought a chosen token, and the ones that it thought likeliest."""

from dataclasses import dataclass

import numpy as np

from haversack.edge.sequence import Logits


@dataclass(frozen=True)
class TokenLogprobs:
    """The logarithm of the probability of the chosen `token`, and of the `likeliest` ones with
    theirs, the likeliest first. Temperature, penalties and grammar are not in them."""

    token: int
    logprob: float
    likeliest: tuple[tuple[int, float], ...]


def token_logprobs(logits: Logits, token: int, num_likeliest: int) -> TokenLogprobs:
    """Return the probabilities at a place whose `logits` are (vocabulary,)."""
    wide = logits.astype(np.float64)
    wide -= wide.max()
    wide -= np.log(np.exp(wide).sum())
    num_likeliest = min(num_likeliest, len(wide))
    found = np.argpartition(wide, -num_likeliest)[-num_likeliest:] if num_likeliest else ()
    likeliest = sorted(((int(idx), float(wide[idx])) for idx in found), key=lambda pair: -pair[1])
    return TokenLogprobs(token, float(wide[token]), tuple(likeliest))
