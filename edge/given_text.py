"""Text as users give it: in an argument, a file or a pipe."""

from pathlib import Path
from typing import BinaryIO

from haversack.devices.errors import PromptError

_MOST_TOKEN_BYTES = 1024  # of text; the longest tokens of vocabularies are far shorter
_MOST_CHAR_BYTES = 4  # in UTF-8
_PIECE_BYTES = 1 << 20  # read at once


def checked_text(flag: str, text: str) -> str:
    """Return `text` unchanged. Raises PromptError if the shell passed bytes that are no UTF-8."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise PromptError(f"{flag} is not UTF-8 text: {text!r}; check its encoding") from None
    return text


def given_path(flag: str, text: str) -> Path:
    """Return `text` as a path. One that begins with ./ becomes absolute: a Path forgets these two
    characters, and the rest may look like the name of a model on the hub. Raises PromptError."""
    if not text:
        raise PromptError(f"{flag} is empty: give a path, or leave it out")
    return Path(text).absolute() if text.startswith("./") else Path(text)


def longest_text_bytes(ctx_tokens: int) -> int:
    """Return a number of bytes that no text exceeds which fits into a context."""
    return (ctx_tokens + 1) * _MOST_TOKEN_BYTES


def read_at_most(stream: BinaryIO, most_bytes: int) -> bytearray:
    """Return what is left of a buffered stream, at most `most_bytes`. Memory grows with what came,
    not with `most_bytes`. Raises OSError."""
    data = bytearray()
    while wanted_bytes := min(_PIECE_BYTES, most_bytes - len(data)):
        piece = stream.read(wanted_bytes)
        data += piece or b""
        if len(piece or b"") < wanted_bytes:  # the end: a terminal would have to be told it again
            break
    return data


def decoded(source: str, data: bytes | bytearray) -> str:
    """Decode `data` as UTF-8. Raises PromptError."""
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise PromptError(
            f"{source} is not UTF-8 text (byte {data[error.start]:#x} at {error.start}): convert it"
        ) from None


def file_text(flag: str, path: Path, most_chars: int) -> str:
    """Return the text in the file that `flag` names, of at most `most_chars`. Raises
    PromptError."""
    try:
        with path.open("rb") as file:
            data = read_at_most(file, most_chars * _MOST_CHAR_BYTES + 1)
    except OSError as error:
        raise PromptError(f"cannot read {flag} {path}: {error.strerror or error}") from error
    if len(data) > most_chars * _MOST_CHAR_BYTES:
        raise PromptError(f"{flag} {path} has over {most_chars} characters: shorten it")
    return decoded(f"{flag} {path}", data)
