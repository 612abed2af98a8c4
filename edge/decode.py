"""One sequence of tokens through an engine: what is in the context, and what it cost."""

import time
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from haversack.devices.errors import ContextError
from haversack.devices.memory import anonymous_bytes
from haversack.edge.planner import Plan
from haversack.edge.stats import Stats
from haversack.offload.engine import Engine


class Decoder:
    """The tokens in an engine's context, and the clock beside it."""

    def __init__(self, engine: Engine, plan: Plan) -> None:
        self.engine = engine
        self._plan = plan
        self._tokens: list[int] = []
        self._prompt_tokens = self._decoded_tokens = 0
        self._prefill_s = self._decode_s = 0.0
        self._peak_bytes = anonymous_bytes()

    @property
    def tokens(self) -> Sequence[int]:
        """What the context holds."""
        return self._tokens

    @property
    def is_full(self) -> bool:
        """Whether there is no room for another token."""
        return len(self._tokens) >= self._plan.shape.ctx_tokens

    def prefill(self, tokens: Sequence[int]) -> None:
        """Make the context hold `tokens`, in batches; logits follow the last.

        What it holds is kept only if `tokens` go on from there, so that a prompt asked for twice
        is computed twice the same way. Raises ContextError if they do not fit.
        """
        if len(tokens) > self._plan.shape.ctx_tokens:
            raise ContextError(
                f"the prompt has {len(tokens)} tokens, the context holds"
                f" {self._plan.shape.ctx_tokens}: shorten it or raise --ctx"
            )
        held = len(self._tokens)
        self.engine.context.forget(held)  # an interrupt may have left one that is in no book
        goes_on = 0 < held < len(tokens) and list(tokens[:held]) == self._tokens
        if not goes_on:
            self.clear()
        start = time.perf_counter()
        try:
            for first in range(len(self._tokens), len(tokens), self._plan.shape.batch_tokens):
                batch = tokens[first : first + self._plan.shape.batch_tokens]
                self._decode(batch)
                self._prompt_tokens += len(batch)
        finally:
            self._prefill_s += time.perf_counter() - start

    def step(self, token: int) -> None:
        """Append one token; logits follow it. Raises ContextError if there is no room."""
        if self.is_full:
            raise ContextError(f"the context of {len(self._tokens)} tokens is full: raise --ctx")
        start = time.perf_counter()
        try:
            self._decode([token])
            self._decoded_tokens += 1
        finally:
            self._decode_s += time.perf_counter() - start

    def logits(self) -> npt.NDArray[np.float32]:
        """Logits after the last token, (vocabulary,) float32."""
        return self.engine.context.logits()

    def clear(self) -> None:
        """Empty the context."""
        self.engine.context.forget(0)
        self._tokens = []

    def _decode(self, tokens: Sequence[int]) -> None:
        context = self.engine.context
        try:
            context.decode(tokens)
            self._tokens += tokens
        finally:
            del self._tokens[context.num_tokens :]  # a call that failed may lose earlier ones too
            self._peak_bytes = max(self._peak_bytes, anonymous_bytes())

    def stats(self) -> Stats:
        """Everything since loading."""
        store, streamer, seam = self.engine.store, self.engine.streamer, self.engine.seam
        return Stats(
            prompt_tokens=self._prompt_tokens,
            tokens=self._decoded_tokens,
            prefill_s=self._prefill_s,
            decode_s=self._decode_s,
            hits=store.hits if store else 0,
            misses=store.misses if store else 0,
            bytes_read=streamer.bytes_read if streamer else 0,
            read_s=streamer.busy_s if streamer else 0.0,
            wait_s=streamer.wait_s if streamer else 0.0,
            own_s=seam.own_s if seam else 0.0,
            prefetched=store.guessed if store else 0,
            prefetched_right=store.guessed_right if store else 0,
            prefetchable=store.foreseeable if store else 0,
            needed=store.needed if store else 0,
            prefetching=seam is not None and seam.reads_ahead,
            ram_budget_bytes=self._plan.ram_bytes,
            ram_planned_bytes=self._plan.planned_bytes,
            ram_peak_bytes=self._peak_bytes,
        )
