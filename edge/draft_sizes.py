"""How large that is which drafts come from, and how it is made smaller."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

from haversack.cache.cross_vocab import STORE_BYTES
from haversack.cache.ngram import MOST_TOKENS, TABLE_BYTES, text_bytes
from haversack.devices.llama import ContextShape

_LEAST_WINDOW_TOKENS = 128
_LEAST_PAIR_BYTES = 256 << 10
_LEAST_TABLE_BYTES = 64 << 10
_LEAST_TEXT_TOKENS = 256


@dataclass(frozen=True)
class DraftSizes:
    """The last `window_tokens` of each text lie in a drafter's context (None: all). A store of
    pairs takes `pair_bytes`, the table of all texts `table_bytes`. The last `text_tokens` of a
    text, at most, are searched for what it repeats. The process in which a drafter learns takes
    `learner_bytes`, whatever the others are."""

    window_tokens: int | None = None
    pair_bytes: int = STORE_BYTES
    table_bytes: int = TABLE_BYTES
    text_tokens: int = MOST_TOKENS
    learner_bytes: int = 0

    def ngram_bytes(self, shape: ContextShape) -> int:
        """Return what drafting without a model takes: the table, and what finds where each text
        repeats itself."""
        return self.table_bytes + shape.sequences * text_bytes(self.tokens_of(shape))

    def tokens_of(self, shape: ContextShape) -> int:
        """Return how many tokens of a text are searched."""
        return min(shape.ctx_tokens, self.text_tokens)

    def smaller(self, shape: ContextShape) -> Iterator["DraftSizes"]:
        """Yield ever smaller ones. What drafts lose least by comes first: the window, the store of
        pairs, the table, the texts."""
        now, window = self, self.window_tokens or shape.ctx_tokens
        while window > _LEAST_WINDOW_TOKENS:
            window = max(_LEAST_WINDOW_TOKENS, window // 2)
            now = replace(now, window_tokens=window)
            yield now
        while now.pair_bytes > _LEAST_PAIR_BYTES:
            now = replace(now, pair_bytes=now.pair_bytes // 4)
            yield now
        while now.table_bytes > _LEAST_TABLE_BYTES:
            now = replace(now, table_bytes=now.table_bytes // 2)
            yield now
        tokens = self.tokens_of(shape)
        while tokens > _LEAST_TEXT_TOKENS:
            tokens = max(_LEAST_TEXT_TOKENS, tokens // 2)
            now = replace(now, text_tokens=tokens)
            yield now


WHOLE = DraftSizes()
