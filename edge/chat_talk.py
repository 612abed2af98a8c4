"""How a chat is led: on a terminal or through pipes."""

import sys
from typing import Protocol

from haversack.devices.errors import PromptError
from haversack.edge.chat_pipe import PipedTalk
from haversack.edge.chat_reply import Reply
from haversack.edge.chat_settings import ChatSettings
from haversack.edge.model import Model


class Talk(Protocol):
    """Where messages come from and replies are shown: a terminal or pipes."""

    @property
    def interactive(self) -> bool:
        """Whether a person types."""
        ...

    def read(self, ctx_tokens: int, draft: str = "") -> str | None:
        """Return the next message, which `draft` begins where a person can change it; None when
        there are no more. Raises StorageError."""
        ...

    def show(self, model: Model, reply: Reply, settings: ChatSettings) -> None:
        """Show the reply as it comes, to its end, and close it."""
        ...


def talk_here() -> Talk:
    """Return how a chat is led in this process. Raises PromptError if stdin is closed."""
    if sys.stdin is None:  # pyright: ignore[reportUnnecessaryComparison]
        raise PromptError("stdin is closed: a chat reads its messages there; see haversack run")
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        return PipedTalk()
    from haversack.edge.chat_terminal import (
        TerminalTalk,
    )  # a third of a second others need not wait

    return TerminalTalk()
