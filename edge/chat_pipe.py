"""A chat without a terminal: each line of stdin is a message, each reply is written as it comes."""

import sys
from contextlib import closing, suppress

from haversack.devices.errors import PromptError, StorageError
from haversack.edge.chat_reply import Reply
from haversack.edge.chat_settings import ChatSettings
from haversack.edge.console import notice, write_text
from haversack.edge.given_text import longest_text_bytes
from haversack.edge.model import Model
from haversack.edge.text import without_mark

QUOTES = '"""'  # around a message of several lines
_PIECE_BYTES = 1 << 16  # of a line that is skipped
_END_BYTES = 64  # of a line that is skipped; kept, because quotes may stand there


def write_reply(reply: Reply, *, with_reasoning: bool) -> None:
    """Write a reply as it comes, and end it with a line break. Reasoning, if it is written, stands
    before a blank line."""
    shown = was_reasoning = False
    with closing(reply.generation):
        try:
            for piece in reply:
                if piece.is_reasoning and not with_reasoning:
                    continue
                write_text("\n\n" if was_reasoning and not piece.is_reasoning else "")
                write_text(piece.text)
                shown, was_reasoning = True, piece.is_reasoning
        finally:
            if shown:
                write_text("\n")


class PipedTalk:
    """Reads messages that are piped in: a line each, or several lines between triple quotes.

    A message that is too long for the context is read to its end and dropped, so that memory does
    not grow with it.
    """

    interactive = False

    def __init__(self) -> None:
        self._begun = self._overlong = False
        self._most_bytes = 0

    def show(self, model: Model, reply: Reply, settings: ChatSettings) -> None:
        """Write the answer as it comes, without reasoning."""
        del model, settings  # nothing is shown beside it, and nothing drawn
        write_reply(reply, with_reasoning=False)

    def read(self, ctx_tokens: int, draft: str = "") -> str | None:
        """Return the next message; None when there are no more. Raises StorageError if stdin cannot
        be read."""
        del draft  # nobody is there to change it
        self._most_bytes = longest_text_bytes(ctx_tokens)
        while True:
            try:
                return self._message(ctx_tokens)
            except EOFError:
                return None
            except UnicodeDecodeError as error:
                notice(f"haversack: this line is not UTF-8 text ({error.reason}): it is left out")
            except PromptError as error:
                notice(f"haversack: {error}")
            except OSError as error:
                raise StorageError(f"cannot read the chat from stdin: {error.strerror}") from error

    def _message(self, ctx_tokens: int) -> str:
        """Return one message. Raises PromptError if it is too long, and what `_line` raises."""
        self._overlong = False
        message = self._line().strip()
        if message.startswith(QUOTES):
            message = self._quoted(message.removeprefix(QUOTES))
        if self._overlong:
            raise PromptError(
                f"this message is longer than {self._most_bytes} bytes, more than a context of"
                f" {ctx_tokens} tokens can hold: shorten it, or start with a larger --ctx"
            )
        return message

    def _quoted(self, text: str) -> str:
        """Return the message that begins with `text` and ends with quotes, or where the input
        ends."""
        with suppress(EOFError):
            while not text.endswith(QUOTES):
                if len(text) > self._most_bytes:
                    self._overlong, text = True, ""
                text += "\n" + self._line()
        return text.removesuffix(QUOTES).strip("\n")

    def _line(self) -> str:
        """Return one line without its end. Raises EOFError, OSError, UnicodeDecodeError."""
        data = sys.stdin.buffer.readline(self._most_bytes + 1)
        if not data:
            raise EOFError
        if len(data) > self._most_bytes and not data.endswith(b"\n"):
            line = self._ends_of_line(data)
        else:
            line = data.decode().rstrip("\r\n")
        first, self._begun = not self._begun, True
        return (
            without_mark(line) if first else line
        )  # or the first command would be taken for a message

    def _ends_of_line(self, begin: bytes) -> str:
        """Return both ends of a line that begins so and is too long, because quotes may stand
        there."""
        self._overlong = True
        end = piece = begin
        while piece and not piece.endswith(b"\n"):
            piece = sys.stdin.buffer.readline(_PIECE_BYTES)
            end = (end + piece)[-_END_BYTES:]
        return (begin[:_END_BYTES] + end).decode(errors="ignore").rstrip("\r\n")
