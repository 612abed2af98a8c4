"""A model that drafts, with a context of its own, beside the target."""

import time
from collections.abc import Callable, Sequence
from itertools import accumulate
from operator import mul
from pathlib import Path
from typing import Protocol, TypeVar

import numpy as np

from haversack.cache.confidence import Confidence, DrawnRates
from haversack.cache.ngram import NONE, Draft, NgramDrafter
from haversack.devices.adapter import Adapter
from haversack.devices.llama import LlamaContext, Row
from haversack.devices.llama_model import LlamaModel
from haversack.edge.call import Call
from haversack.edge.draft_source import DraftingContext, open_drafter
from haversack.edge.draft_text import DraftText, Vocabularies
from haversack.edge.drafter_plan import DrafterPlan
from haversack.edge.sequence import Logits

Chosen = TypeVar("Chosen")

_FIRST_SINGLE = 3  # passes of one token, to time them
_MOST_UNKNOWN = 4  # draft tokens that stand for no target token yet, then a draft ends
_SURE = 0.8  # how often a draft without a model must be right for none to be computed
_LONGEST_CATCH_UP = 128  # tokens; a text that went on for longer is read anew from near its end


class Advice(Protocol):
    """What the gate says to a drafter."""

    def most_read(self) -> int:
        """Return how many tokens of a text it may read before it drafts."""
        ...

    def pays(self, survivals: Sequence[float]) -> bool:
        """Return whether to draft on behind tokens that have these chances to be kept."""
        ...


class DraftModel:
    """A loaded model that drafts, and how far it has read each sequence of the target."""

    def __init__(self, planned: DrafterPlan) -> None:
        """Its first passes are computed here, so that their memory is taken and their time known.
        Raises ModelFileError, KeyboardInterrupt, HaversackError."""
        self._context: DraftingContext | None
        self.model, self._context = open_drafter(planned)
        self._adapter = Adapter()
        self.path, self.window_tokens = planned.path, planned.shape.ctx_tokens
        self.confidence, self.drawn_rates = Confidence(), DrawnRates()
        self._num_drafted = self._num_read = 0
        self._drafted_s = self._read_s = 0.0
        self._batch_tokens = planned.shape.batch_tokens
        self._held: list[list[int]] = [[] for _ in range(planned.shape.sequences)]
        try:
            for num_tokens in range(self._batch_tokens - _FIRST_SINGLE, self._batch_tokens + 1):
                self.next_token(0, [0] * num_tokens)
        except BaseException:
            self.close()
            raise

    @property
    def spent(self) -> tuple[int, float, int, float]:
        """Return the tokens that it has drafted, and the seconds of that; those that it has read,
        and the seconds of that."""
        return self._num_drafted, self._drafted_s, self._num_read, self._read_s

    def next_token(self, sequence: int, tokens: Sequence[int]) -> tuple[int, float]:
        """Return the likeliest token after `tokens`, and its probability; else as `choose`."""
        return self.choose(sequence, tokens, _likeliest)

    def choose(
        self, sequence: int, tokens: Sequence[int], choice: Callable[[Logits], Chosen]
    ) -> Chosen:
        """Return what `choice` says to the logits after `tokens`, of which the sequence keeps what
        it holds already. Raises as `LlamaContext.compute`, and as `choice`."""
        began_s = time.perf_counter()
        num_new = self._compute(sequence, tokens)
        assert self._context is not None
        found = choice(self._context.borrow_logits())
        spent_s = time.perf_counter() - began_s
        if num_new == 1:
            self._num_drafted, self._drafted_s = self._num_drafted + 1, self._drafted_s + spent_s
        else:
            self._num_read, self._read_s = self._num_read + num_new, self._read_s + spent_s
        return found

    def _compute(self, sequence: int, tokens: Sequence[int]) -> int:
        """Have the sequence hold `tokens`, the last of them just computed. Return how many were."""
        assert self._context is not None, "the drafter is closed"
        held = self._held[sequence]
        kept = min(_num_shared(held, tokens), len(tokens) - 1)
        self._held[sequence] = []  # unless all goes well
        if kept < len(held):
            self._context.forget(kept, sequence)
        for first in range(kept, len(tokens), self._batch_tokens):
            batch = tokens[first : first + self._batch_tokens]
            last = first + len(batch) == len(tokens)
            rows = [
                Row(token, first + idx, sequence, last and idx == len(batch) - 1)
                for idx, token in enumerate(batch)
            ]
            self._context.compute(rows)
        self._held[sequence] = list(tokens)
        return len(tokens) - kept

    def adapt(self, path: Path) -> None:
        """Compute with the low-rank changes in the file at `path` from now on, in place of earlier
        ones; texts are read anew. Raises ModelFileError."""
        model, context = self.model, self._context
        assert isinstance(model, LlamaModel) and isinstance(context, LlamaContext)
        self._adapter.use(model.address, context.address, path)
        for sequence, held in enumerate(self._held):
            if held:
                context.forget(0, sequence)
                self._held[sequence] = []

    def close(self) -> None:
        """Free its memory; may be called twice."""
        if self._context is not None:
            self._context.close()
            self._context = None
            self._adapter.close()
        self.model.close()


def _num_shared(held: Sequence[int], tokens: Sequence[int]) -> int:
    if held == tokens[: len(held)]:
        return len(held)
    pairs = enumerate(zip(held, tokens, strict=False))
    return next((idx for idx, (one, other) in pairs if one != other), min(len(held), len(tokens)))


def _likeliest(logits: Logits) -> tuple[int, float]:
    token = int(np.argmax(logits))
    return token, float(1 / np.exp(logits - logits[token]).sum(dtype=np.float64))


class ModelDrafter:
    """Drafts how one text goes on, with a model."""

    def __init__(
        self, model: DraftModel, vocabularies: Vocabularies, call: Call, advice: Advice
    ) -> None:
        assert call.sequence is not None
        self._model, self._both, self._advice = model, vocabularies, advice
        self._call, self._sequence = call, call.sequence.number
        self._text: DraftText | None = None
        self._num_seen = 0
        self._proposed, self._probabilities = Draft((), ()), list[float]()

    def propose(self, text: Sequence[int], most: int) -> Draft:
        """Return how `text` may go on, at most `most` tokens. It begins with the text of the call
        before. Raises as `LlamaContext.compute`."""
        self._count_outcome(text)
        before = self._followed(text, 2 * most + 1)
        if not before:
            return NONE
        found = self._drafted(before, most)
        return Draft(found.tokens[:most], found.rates[:most])

    def _drafted(self, before: list[int], most: int) -> Draft:
        model, rate = self._model, self._model.confidence.rate
        tokens, rates, found = list[int](), list[float](), NONE
        while len(tokens) < 2 * most:
            token, probability = model.next_token(self._sequence, [*before, *tokens])
            if model.model.vocabulary.ends(token):
                break
            tokens.append(token)
            rates.append(rate(probability))
            self._probabilities.append(probability)
            found, num_unknown = self._text_now.translate(Draft(tokens, rates))
            if len(found.tokens) >= most or num_unknown > _MOST_UNKNOWN:
                break
            if not self._advice.pays(list(accumulate(found.rates, mul))):
                break
        self._proposed = found
        return found

    @property
    def _text_now(self) -> DraftText:
        assert self._text is not None
        return self._text

    def _followed(self, text: Sequence[int], num_new: int) -> list[int]:
        """Return the text in the drafter's tokens, from where they leave room for `num_new` more;
        none if nothing does."""
        room, unread = self._model.window_tokens - num_new, len(text) - self._num_seen
        self._num_seen = len(text)
        if self._text is None or unread > _LONGEST_CATCH_UP:
            return self._begun(text, min(self._advice.most_read(), room // 2))
        tokens = self._text.follow(text)
        return tokens if len(tokens) <= room else self._begun(text, room // 2)

    def _begun(self, text: Sequence[int], most: int) -> list[int]:
        """Begin at most so many of the target's tokens before the end."""
        room = self._model.window_tokens
        while most > 0:
            self._text = self._both.text(max(0, len(text) - most))
            tokens = self._text.follow(text)
            if 2 * len(tokens) <= room:
                return tokens
            most //= 2
        self._text = None
        return []

    def _count_outcome(self, text: Sequence[int]) -> None:
        """Compare the latest draft with how the text went on."""
        if self._proposed.tokens:
            new = text[self._num_seen : self._num_seen + len(self._proposed.tokens)]
            right = _num_shared(self._proposed.tokens, new)
            if right < len(new) or right == len(self._proposed.tokens):
                self._note(right, len(new))
        self._proposed, self._probabilities = NONE, []

    def _note(self, num_right: int, num_known: int) -> None:
        """Count a draft of which the first `num_right` tokens were right, and `num_known` known."""
        self._model.confidence.note(self._probabilities[:num_known], num_right)

    def close(self) -> None:
        """Its sequence keeps what the model has read of it: the next text may begin like it."""


class DrawnDrafter(ModelDrafter):
    """Drafts for a text whose tokens are drawn at random, with a model of the same vocabulary: its
    tokens are drawn as well, and offered to the call.

    So that each token of the text stays as likely as it is without drafts, whether a token is
    drafted must not depend on which one was drawn, nor on those behind it. So the rates, by which
    drafts are shortened, tell how often tokens at their place in a draft were taken; that of the
    first, how often one was after which the model was as sure as now.
    """

    def _drafted(self, before: list[int], most: int) -> Draft:
        call, model = self._call, self._model
        offers = [model.choose(self._sequence, before, call.offer)]
        self._probabilities = [float(offers[0].shares.max())]
        rates = model.drawn_rates.of(self._probabilities[0], most)
        number = 1
        while number < most and self._advice.pays(list(accumulate(rates[:number], mul))):
            number += 1
        tokens = [offers[0].token]
        while len(tokens) < number:
            offers.append(model.choose(self._sequence, [*before, *tokens], call.offer))
            tokens.append(offers[-1].token)
        call.offers.extend(offers)
        self._proposed = Draft(tokens, rates[:number])
        return self._proposed

    def _note(self, num_right: int, num_known: int) -> None:
        self._model.drawn_rates.note(self._probabilities[0], num_right, num_known)


class MixedDrafter:
    """Drafts with what needs no model where that is right more often, else with a model."""

    def __init__(self, ngrams: NgramDrafter, model: ModelDrafter) -> None:
        self._ngrams, self._model = ngrams, model

    def propose(self, text: Sequence[int], most: int) -> Draft:
        """As `ModelDrafter.propose`."""
        found = self._ngrams.propose(text, most)
        if found.rates and found.rates[0] >= _SURE:
            return found
        return self._model.propose(text, most)

    def close(self) -> None:
        self._ngrams.close()
        self._model.close()
