"""Choosing tokens: a grammar, and llama.cpp's samplers one after the other."""

import math
from collections.abc import Iterable
from random import Random
from typing import Any

import numpy as np
import numpy.typing as npt

from haversack.devices import guard
from haversack.devices._native import llama, pointer_to
from haversack.devices.errors import NotFiniteError, PromptError
from haversack.devices.grammar import Grammar, GrammarMatcher
from haversack.devices.offers import Ids, Offer, Shares, drawn, likeliest
from haversack.devices.vocabulary import Vocabulary

_CANDIDATE = np.dtype([("id", np.int32), ("logit", np.float32), ("p", np.float32)])
# A chain's tables take 12 bytes a token for the candidates and 4 for the ids, a mask and what it
# leaves 9, and llama.cpp copies the candidates to sort them.
_CHAIN_BYTES_PER_TOKEN = 12 + 4 + 9 + 12
# Where samplers keep no more tokens than this, the likeliest are shown to the grammar one by one
# and its mask of the whole vocabulary is not needed, unless so many are refused on the way.
_MOST_SHOWN = 128
_MOST_REFUSED = 16


def chain_bytes(num_tokens: int) -> int:
    """Return the memory that sampling from `num_tokens` tokens takes."""
    return _CHAIN_BYTES_PER_TOKEN * num_tokens


class SamplerTables:
    """The tables in which a token is chosen among `num_tokens`. Chains that choose one after the
    other may share them."""

    def __init__(self, num_tokens: int) -> None:
        self.ids = np.arange(num_tokens, dtype=np.int32)
        self.data = llama.candidates(num_tokens)
        self.candidates = np.frombuffer(self.data, _CANDIDATE)

    @property
    def num_bytes(self) -> int:
        """Return the memory that they take."""
        return self.ids.nbytes + self.candidates.nbytes


class SamplerChain:
    """Chooses tokens by their logits, through the samplers in the order they are added; a grammar
    and penalties come before all others.

    The last one added must be `add_random` or `add_greedy`.
    """

    def __init__(self, vocabulary: Vocabulary, tables: SamplerTables | None = None) -> None:
        self._vocabulary = vocabulary
        self._matcher: GrammarMatcher | None = None
        self._penalties = _new_chain()
        self._chain = _new_chain()
        self._penalty_tokens = 0  # how far back penalties look
        self._num_kept: int | None = None  # by the first that cuts off; 0: not known beforehand
        self._is_greedy = False
        self._random = Random()  # decides on offers
        self._tables = tables or SamplerTables(vocabulary.num_tokens)

    def _add(self, sampler: Any) -> None:
        llama.llama_sampler_chain_add(self._chain, sampler)

    def add_grammar(self, grammar: Grammar) -> None:
        """Allow only the tokens that the grammar allows next. Raises PromptError."""
        self._matcher = self._vocabulary.trie.matcher(grammar)

    def add_penalties(self, last_n: int, repeat: float, frequency: float, presence: float) -> None:
        """Make tokens among the last `last_n` less likely; 1, 0 and 0 change nothing."""
        if last_n == 0 or (repeat, frequency, presence) == (1, 0, 0):
            return
        self._penalty_tokens = last_n
        num_tokens = self._vocabulary.num_tokens
        llama.llama_sampler_chain_add(
            self._penalties,
            llama.llama_sampler_init_penalties(num_tokens, last_n, repeat, frequency, presence),
        )

    def add_top_k(self, k: int) -> None:
        """Keep the k likeliest tokens; 0 keeps all."""
        if k:
            self._keep(k)
        self._add(llama.llama_sampler_init_top_k(k))

    def add_top_p(self, p: float) -> None:
        """Keep the likeliest tokens that together have probability p."""
        self._keep(0)
        self._add(llama.llama_sampler_init_top_p(p, 1))

    def add_min_p(self, p: float) -> None:
        """Keep tokens at least p times as likely as the likeliest."""
        self._add(llama.llama_sampler_init_min_p(p, 1))

    def add_temperature(self, temperature: float) -> None:
        """Divide the logits by `temperature`."""
        self._add(llama.llama_sampler_init_temp(temperature))

    def add_random(self, seed: int) -> None:
        """Draw from the tokens that are left; the same seed draws the same."""
        self._random = Random(seed)
        self._add(llama.llama_sampler_init_dist(seed))

    def add_greedy(self) -> None:
        """Take the likeliest token."""
        self._keep(1)
        self._is_greedy = True
        self._add(llama.llama_sampler_init_greedy())

    def _keep(self, num_kept: int) -> None:
        """Remember how many tokens the first sampler that cuts some off keeps."""
        if self._num_kept is None:
            self._num_kept = num_kept

    @property
    def finished(self) -> bool:
        """Return whether the grammar allows no further token because the text is complete."""
        return self._matcher is not None and self._matcher.must_end

    @property
    def takes_likeliest(self) -> bool:
        """Return whether it takes the likeliest token, whatever the text before it."""
        return self._is_greedy and self._matcher is None and not self._penalty_tokens

    def follow(self, prompt: Iterable[int]) -> None:
        """Have penalties count the tokens of the prompt, which stand before the text."""
        if self._penalty_tokens:
            for token in list(prompt)[-self._penalty_tokens :]:
                guard.sampler_accept(self._penalties, token)

    def offer(self, logits: npt.NDArray[np.float32]) -> Offer:
        """Draw a token by the logits of another model with the same tokens, (vocabulary,), through
        the samplers, but not the grammar. The random numbers of the text change. Raises
        NotFiniteError."""
        _refuse_not_finite(logits)
        candidates = self._among(self._tables.ids, logits)
        guard.sampler_apply(self._chain, pointer_to(candidates))
        ids, shares = likeliest(*_left(candidates))
        return Offer(drawn(ids, shares, self._random), ids, shares)

    def sample(self, logits: npt.NDArray[np.float32], offer: Offer | None = None) -> int:
        """Choose the next token by its `logits`, (vocabulary,), and add it to the text. An `offer`
        may be taken; every token is as likely as without it.

        Raises PromptError if the grammar leaves no token or is too complex, NotFiniteError if the
        logits are not finite.
        """
        _refuse_not_finite(logits)
        if self.takes_likeliest:
            return int(logits.argmax())  # what llama.cpp's sampler takes: the first of the highest
        token = self._drawn(logits, offer)
        if self._penalty_tokens:
            guard.sampler_accept(self._penalties, token)
        guard.sampler_accept(self._chain, token)
        if self._matcher is not None:
            self._matcher.accept(token)
        return token

    def _drawn(self, logits: npt.NDArray[np.float32], offer: Offer | None) -> int:
        """Return the token that the grammar and the samplers choose."""
        candidates = self._among(self._tables.ids, logits)
        if self._matcher is not None:
            candidates = self._shown(self._matcher, candidates) or self._masked(logits)
        guard.sampler_apply(self._chain, pointer_to(candidates))
        if offer is not None:
            return offer.decided(*_left(candidates), self._random)
        # Samplers may have put another array in place of ours.
        return int(candidates.data[candidates.selected].id)

    def _among(self, ids: npt.NDArray[np.int32], logits: npt.NDArray[np.float32]) -> Any:
        """Return llama.cpp's array of candidates, with penalties applied."""
        candidates = self._tables.candidates[: len(ids)]
        candidates["id"], candidates["logit"] = ids, logits
        array = llama.llama_token_data_array(self._tables.data, len(ids), -1, False)
        if self._penalty_tokens:
            guard.sampler_apply(self._penalties, pointer_to(array))
        return array

    def _shown(self, matcher: GrammarMatcher, candidates: Any) -> Any | None:
        """Return the likeliest candidates that the grammar allows, as many as the samplers keep;
        None if they are not found soon. The draw from them equals the draw from all allowed ones,
        because the samplers cut the others off."""
        num_kept = self._num_kept or 0
        if not 0 < num_kept <= _MOST_SHOWN:
            return None
        top = llama.llama_sampler_init_top_k(num_kept + _MOST_REFUSED)
        guard.sampler_apply(top, pointer_to(candidates))
        llama.llama_sampler_free(top)
        data, num_allowed = candidates.data, 0
        for place in range(candidates.size):
            if not matcher.allows(data[place].id):
                continue
            data[num_allowed] = data[place]
            num_allowed += 1
            if num_allowed == num_kept:
                candidates.size = num_kept
                return candidates
        return None

    def _masked(self, logits: npt.NDArray[np.float32]) -> Any:
        """Return all candidates that the grammar allows."""
        assert self._matcher is not None
        allowed = self._matcher.allowed()
        ids = np.compress(allowed, self._tables.ids)
        if not len(ids):
            raise PromptError("the grammar allows no token of the vocabulary here: change it")
        return self._among(ids, np.compress(allowed, logits))

    def close(self) -> None:
        """Free the samplers; may be called twice."""
        self._matcher = None
        for chain in filter(None, (self._penalties, self._chain)):
            llama.llama_sampler_free(chain)
        self._penalties = self._chain = None


def _left(candidates: Any) -> tuple[Ids, Shares]:
    """Return the tokens that samplers with a random one at the end have left, and their
    probabilities."""
    array: Any = np.ctypeslib.as_array(candidates.data, (candidates.size,))
    return array["id"].copy(), array["p"].astype(np.float64)


def _new_chain() -> Any:
    return llama.llama_sampler_chain_init(llama.llama_sampler_chain_default_params())


def _refuse_not_finite(logits: npt.NDArray[np.float32]) -> None:
    highest = logits.max()  # NaN if any of them is
    if not math.isfinite(highest):
        raise NotFiniteError(
            f"the model computed logits that are not finite ({highest}): its file is damaged"
            " (check its hash, or get it again), or its arithmetic overflowed (try another"
            " quantization of the model)"
        )
