"""One sequence of tokens through an engine: what is in the context, and what it cost."""

import time
from collections.abc import Sequence
from contextlib import nullcontext
from itertools import takewhile

import numpy as np
import numpy.typing as npt

from haversack.devices.errors import ContextError
from haversack.devices.ledger import Lease, ledger
from haversack.devices.memory import PeakMeter
from haversack.edge.planner import Plan
from haversack.edge.stats import Stats
from haversack.offload.engine import Engine
from haversack.quant.gguf import ModelGeometry


class Decoder:
    """The tokens in an engine's context, and the clock beside it.

    `lease` grows by the memory that a batch takes if it is wider than all before it. `peak`
    looks at the process after each pass; by default it begins now.
    """

    def __init__(
        self,
        engine: Engine,
        plan: Plan,
        lease: Lease | None = None,
        peak: PeakMeter | None = None,
    ) -> None:
        self.engine = engine
        self._plan = plan
        self._lease, self._peak = lease, peak or PeakMeter()
        self._widest_tokens = 0
        self._tokens: list[int] = []
        self._whole_tokens = 0  # of them, those computed from the start in whole batches
        self._prompt_tokens = self._decoded_tokens = 0
        self._prefill_s = self._decode_s = 0.0
        self._peak_bytes = self._peak.look()

    @property
    def tokens(self) -> Sequence[int]:
        """What the context holds."""
        return self._tokens

    @property
    def geometry(self) -> ModelGeometry:
        """What the model's files hold."""
        return self._plan.geometry

    @property
    def is_full(self) -> bool:
        """Whether there is no room for another token."""
        return len(self._tokens) >= self._plan.shape.ctx_tokens

    def prefill(self, tokens: Sequence[int]) -> None:
        """Make the context hold `tokens`, in batches; logits follow the last.

        If `tokens` go on from what the context holds, all of it is kept. Else the whole batches
        that both begin with are kept, so that the logits are those of a prompt computed anew, and
        a prompt asked for twice gives the same bits. A model that cannot drop a part of what it
        holds (see LlamaContext.forget) computes all of it again. Raises ContextError if `tokens`
        do not fit.
        """
        if len(tokens) > self._plan.shape.ctx_tokens:
            raise ContextError(
                f"the prompt has {len(tokens)} tokens, the context holds"
                f" {self._plan.shape.ctx_tokens}: shorten it or raise --ctx"
            )
        held = len(self._tokens)
        goes_on = 0 < held < len(tokens) and list(tokens[:held]) == self._tokens
        # Also where all is kept: an interrupt may have left a token that is not in the book.
        self._keep(held if goes_on else self._repeatable(tokens))
        start = time.perf_counter()
        try:
            if goes_on:  # nothing, unless the model could not keep it
                self._compute(tokens[len(self._tokens) : held])
            self._compute(tokens[len(self._tokens) :])
        finally:
            self._prefill_s += time.perf_counter() - start

    def _repeatable(self, tokens: Sequence[int]) -> int:
        """How many tokens in the context are those that `tokens` begin with, computed in the very
        batches in which they would be computed anew. At least one is left to compute."""
        if not self.engine.context.holds_every_token:
            return 0
        pairs = zip(tokens[:-1], self._tokens[: self._whole_tokens], strict=False)
        same = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
        return same - same % self._plan.shape.batch_tokens

    def _compute(self, tokens: Sequence[int]) -> None:
        batch_tokens = self._plan.shape.batch_tokens
        for first in range(0, len(tokens), batch_tokens):
            batch = tokens[first : first + batch_tokens]
            self._decode(batch)
            self._prompt_tokens += len(batch)

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
        self._keep(0)

    def _decode(self, tokens: Sequence[int]) -> None:
        start = len(self._tokens)
        widest = len(tokens) > self._widest_tokens
        try:
            with ledger.measured(self._lease) if widest and self._lease else nullcontext():
                self.engine.context.decode(tokens)
            self._widest_tokens = max(self._widest_tokens, len(tokens))
            self._tokens += tokens
            if start == self._whole_tokens and len(tokens) == self._plan.shape.batch_tokens:
                self._whole_tokens += len(tokens)
        finally:
            self._follow_context()  # a call that failed may lose earlier tokens too
            self._peak_bytes = self._peak.look()

    def _keep(self, num_tokens: int) -> None:
        """Have the context forget what comes after so many tokens, or all if it must."""
        try:
            self.engine.context.forget(num_tokens)
        finally:
            self._follow_context()

    def _follow_context(self) -> None:
        """The book of tokens never says more than the context holds."""
        del self._tokens[self.engine.context.num_tokens :]
        batch_tokens = self._plan.shape.batch_tokens
        whole_held = len(self._tokens) - len(self._tokens) % batch_tokens
        self._whole_tokens = min(self._whole_tokens, whole_held)

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
