"""Learning from lessons: low-rank changes of a drafter's layers, by the loss of OmniDraft (arXiv
2507.02659).

At direct places it is the reverse Kullback-Leibler divergence, of the drafter's chances from the
target's, over the target's likeliest tokens and all others together. At split places it is 0.2
times the logarithm of the chance that the drafter gave to what came.
"""

from collections import deque
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from haversack.edge.learning.decoder import AdaptedDecoder
from haversack.edge.learning.lessons import Lesson

_RATE = 1e-3
_SPLIT_WEIGHT = 0.2
_MOST_NORM = 1.0  # of a gradient
_BATCH = 4  # lessons of a step: the new one and others of late
_MOST_KEPT = 64
_HELD_EVERY, _MOST_HELD = 5, 16  # of the lessons, one is never learnt from, but measured on
_LEAST_HELD = 2
_LEAST_CHANCE = 1e-4


class Trainer:
    """Learns from lessons as they come."""

    def __init__(self, decoder: AdaptedDecoder, seed: int = 0) -> None:
        self.decoder, self.num_steps = decoder, 0
        self._optimizer = torch.optim.AdamW(decoder.parameters(), lr=_RATE, weight_decay=0.0)
        self._kept = deque[Lesson](maxlen=_MOST_KEPT)
        self.held_out = deque[Lesson](maxlen=_MOST_HELD)
        self._num_lessons = 0
        self._generator = torch.Generator().manual_seed(seed)

    def take(self, lesson: Lesson) -> bool:
        """Learn from a lesson, or keep it to measure on; return whether it was learnt from."""
        self._num_lessons += 1
        if self._num_lessons % _HELD_EVERY == 2:
            self.held_out.append(lesson)
            return False
        others = torch.randperm(len(self._kept), generator=self._generator)[: _BATCH - 1].tolist()
        batch = [lesson, *(self._kept[number] for number in others)]
        self._kept.append(lesson)
        self.step(batch)
        return True

    def step(self, lessons: Sequence[Lesson]) -> None:
        """Change the decoder by what `lessons` teach."""
        self._optimizer.zero_grad()
        for lesson in lessons:  # one after the other: activations of one are held
            (_loss(self.decoder, lesson) / len(lessons)).backward()
        torch.nn.utils.clip_grad_norm_(self.decoder.parameters(), _MOST_NORM)
        self._optimizer.step()
        self.num_steps += 1

    @property
    def can_measure(self) -> bool:
        """Return whether enough lessons were kept to measure on."""
        return len(self.held_out) >= _LEAST_HELD

    def right_before_and_after(self) -> tuple[float, float]:
        """Return how often the drafter's likeliest token is the text's, at the places of the
        lessons that it did not learn from, without what it learnt and with it."""
        found = list[float]()
        try:
            for adapted in (False, True):
                self.decoder.is_adapted = adapted
                found.append(_share_right(self.decoder, self.held_out))
        finally:
            self.decoder.is_adapted = True
        return found[0], found[1]


def _logits(decoder: AdaptedDecoder, lesson: Lesson) -> tuple[Tensor, Tensor]:
    """Return the logits of the tokens at the direct places, then at the split ones, and those
    tokens."""
    tokens = torch.from_numpy(lesson.tokens).long()
    places = torch.cat([torch.from_numpy(each).long() for each in (lesson.direct, lesson.split)])
    return decoder.logits(tokens[:-1], places - 1), tokens[places]


def _loss(decoder: AdaptedDecoder, lesson: Lesson) -> Tensor:
    logits, came = _logits(decoder, lesson)
    chances = functional.log_softmax(logits, dim=-1)
    number = len(lesson.direct)
    kept = torch.from_numpy(lesson.logprobs)
    known = kept > -torch.inf
    ours = chances[:number].gather(1, torch.from_numpy(lesson.ids).long())
    theirs = kept.masked_fill(~known, 0.0)
    each = (ours.exp() * (ours - theirs)).masked_fill(~known, 0.0).sum(1)
    rest = _rest(ours.masked_fill(~known, -torch.inf))
    divergence = each + rest * (rest.log() - _rest(kept).log())
    surprise = -chances[number:].gather(1, came[number:, None])
    return (divergence.sum() + _SPLIT_WEIGHT * surprise.sum()) / len(came)


def _rest(logprobs: Tensor) -> Tensor:
    """Return the chance of all tokens but these."""
    return (1 - logprobs.exp().sum(1)).clamp(min=_LEAST_CHANCE)


@torch.no_grad()
def _share_right(decoder: AdaptedDecoder, lessons: Sequence[Lesson]) -> float:
    right = total = 0
    for lesson in lessons:
        logits, came = _logits(decoder, lesson)
        right += int((logits.argmax(-1) == came).sum())
        total += len(came)
    return right / max(1, total)
