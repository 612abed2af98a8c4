"""Pieces of text that are read one after the other: what every generation is to its reader."""

import importlib
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass

from typing_extensions import Self

from haversack.edge.logprobs import TokenLogprobs
from haversack.edge.stats import Stats


class Pieces(ABC):
    """Text as it is generated: iterate over it, with `for` or `async for`, or take `text` when it
    is done. Use it in a `with` block, or `close` it, if it may not be read to its end."""

    def __init__(self) -> None:
        self._shown: list[str] = []  # the pieces that were read

    @property
    @abstractmethod
    def finish_reason(self) -> str | None:
        """ "stop" (the model ended, or a stop string came), "length" (`max_tokens`), "context"
        (the context is full) or "cancelled"; None while it runs."""

    @abstractmethod
    def _read(self) -> str:
        """Return the next piece, which is in `_shown` then; empty at the end."""

    @abstractmethod
    def cancel(self) -> None:
        """End it as soon as possible, from any thread or signal handler; iteration then stops."""

    @abstractmethod
    def close(self) -> None:
        """Let go of the model without reading on; may be called twice."""

    @property
    def text(self) -> str:
        """All text; reads the generation to its end first."""
        if self.finish_reason is None:
            for _ in self:
                pass
        return "".join(self._shown)

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        try:
            piece = self._read()
        except KeyboardInterrupt:
            self.close()  # whoever keeps the traceback keeps this
            raise
        if not piece:
            raise StopIteration
        return piece

    def __aiter__(self) -> AsyncIterator[str]:
        return self

    async def __anext__(self) -> str:
        asyncio = importlib.import_module("asyncio")  # 20 ms that others need not wait for
        try:
            piece: str | None = await asyncio.to_thread(next, self, None)
        except asyncio.CancelledError:
            self.cancel()
            raise
        if piece is None:
            raise StopAsyncIteration
        return piece

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


@dataclass(frozen=True)
class NextPiece:
    """How a generation of another process went on: its next piece, empty at its end, the tokens and
    their `logprobs` that came since it was last asked, and what is known of it now."""

    piece: str
    tokens: list[int]
    logprobs: list[TokenLogprobs]
    finish_reason: str | None
    stopped_by: str | None
    stats: Stats | None
