"""llama.cpp's samplers, put together one after the other."""

import re
from typing import Any

import numpy as np

from haversack.devices._native import llama, pointer_to
from haversack.devices.errors import PromptError
from haversack.devices.llama import LlamaContext, Vocabulary
from haversack.devices.logs import captured_logs

# What of a grammar is not structure: strings, sets of characters, comments.
_LITERAL = re.compile(r'"(?:\\.|[^"\\])*"|\[(?:\\.|[^\]\\])*\]|#.*')
_REPEAT = re.compile(r"\{\s*(\d+)\s*,\s*(\d+)\s*\}")
_MAX_DEPTH = 100  # of parentheses: llama.cpp's parser recurses, and has no limit of its own
_CANDIDATE = np.dtype([("id", np.int32), ("logit", np.float32), ("p", np.float32)])


def _refuse_deadly(gbnf: str) -> None:
    """llama.cpp takes no grammar for any, loops on {2,1} and overflows its stack when nested."""
    if not gbnf.strip() or "\0" in gbnf:
        raise PromptError("the grammar is empty or holds a null character: give GBNF")
    structure = _LITERAL.sub("", gbnf)
    for least, most in _REPEAT.findall(structure):
        if int(least) > int(most):
            raise PromptError(
                f"the grammar repeats {{{least},{most}}}: the first must not be larger"
            )
    depth = deepest = 0
    for bracket in re.findall("[()]", structure):
        depth += 1 if bracket == "(" else -1
        deepest = max(deepest, depth)
    if deepest > _MAX_DEPTH:
        raise PromptError(f"the grammar nests {deepest} parentheses: at most {_MAX_DEPTH}")


class SamplerChain:
    """Chooses tokens from a context's logits, through the samplers in the order they are added.

    The last one added must be `add_random` or `add_greedy`.
    """

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._vocabulary = vocabulary
        self._chain = llama.llama_sampler_chain_init(llama.llama_sampler_chain_default_params())

    def _add(self, sampler: Any) -> None:
        llama.llama_sampler_chain_add(self._chain, sampler)

    def add_grammar(self, gbnf: str) -> None:
        """Only tokens that the grammar allows next. Raises PromptError if it does not parse."""
        _refuse_deadly(gbnf)
        with captured_logs() as log:
            sampler = llama.llama_sampler_init_grammar(
                self._vocabulary.address, gbnf.encode(), b"root"
            )
        if not sampler:
            raise PromptError(f"the grammar does not parse: {log.reason()}; it needs a rule `root`")
        self._add(sampler)

    def add_penalties(self, last_n: int, repeat: float, frequency: float, presence: float) -> None:
        """Make tokens among the last `last_n` less likely."""
        num_tokens = self._vocabulary.num_tokens
        self._add(
            llama.llama_sampler_init_penalties(num_tokens, last_n, repeat, frequency, presence)
        )

    def add_top_k(self, k: int) -> None:
        """Keep the k likeliest tokens; 0 keeps all."""
        self._add(llama.llama_sampler_init_top_k(k))

    def add_top_p(self, p: float) -> None:
        """Keep the likeliest tokens that together have probability p."""
        self._add(llama.llama_sampler_init_top_p(p, 1))

    def add_min_p(self, p: float) -> None:
        """Keep tokens at least p times as likely as the likeliest."""
        self._add(llama.llama_sampler_init_min_p(p, 1))

    def add_temperature(self, temperature: float) -> None:
        """Divide the logits by `temperature`."""
        self._add(llama.llama_sampler_init_temp(temperature))

    def add_random(self, seed: int) -> None:
        """Draw from what is left; the same seed draws the same."""
        self._add(llama.llama_sampler_init_dist(seed))

    def add_greedy(self) -> None:
        """Take the likeliest."""
        self._add(llama.llama_sampler_init_greedy())

    def sample(self, context: LlamaContext) -> int:
        """The next token after the context's last, which counts as taken.

        Raises PromptError if the grammar leaves no token: llama.cpp would end the process.
        """
        num_tokens = self._vocabulary.num_tokens
        data = (llama.llama_token_data * num_tokens)()
        candidates = np.frombuffer(data, _CANDIDATE)
        candidates["id"], candidates["logit"] = np.arange(num_tokens), context.logits()
        array = llama.llama_token_data_array(data, num_tokens, -1, False)
        llama.llama_sampler_apply(self._chain, pointer_to(array))
        chosen = array.data[array.selected]  # samplers may have put another array in place of ours
        if not np.isfinite(chosen.logit):
            raise PromptError("the grammar allows no token of the vocabulary here: change it")
        llama.llama_sampler_accept(self._chain, chosen.id)
        return int(chosen.id)

    def close(self) -> None:
        """Free the samplers; may be called twice."""
        if self._chain:
            llama.llama_sampler_free(self._chain)
            self._chain = None
