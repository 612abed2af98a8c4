"""llama.cpp's samplers, put together one after the other."""

from typing import Any

from haversack.devices._native import llama
from haversack.devices.errors import PromptError
from haversack.devices.llama import LlamaContext, Vocabulary
from haversack.devices.logs import captured_logs


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
        """The next token after the context's last, which counts as taken."""
        return int(llama.llama_sampler_sample(self._chain, context.address, -1))

    def close(self) -> None:
        """Free the samplers; may be called twice."""
        if self._chain:
            llama.llama_sampler_free(self._chain)
            self._chain = None
