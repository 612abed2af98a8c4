"""Chats in files: JSON that people can read too, written whole or not at all."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from haversack.devices.errors import PromptError, StorageError
from haversack.devices.storage import write_whole

Turn = tuple[str, str]  # what the user said, what the model replied

VERSION = 2
_OLD_VERSION = 1  # without model_id and kv
_MARK, _MARK_WITHIN_BYTES = b'"haversack_chat"', 256  # how the file of a chat begins


@dataclass(frozen=True)
class KeptChat:
    """A chat: the name of its model's file and a digest of its content, what the model was told
    before it, its turns, and the name of the file beside it with its keys and values, if any."""

    model: str
    model_id: str | None
    system: str | None
    turns: list[Turn]
    kv: str | None = None

    def save(self, path: Path) -> None:
        """Write it to `path`. An older chat there is replaced only once the new one is on the disk.
        Raises StorageError, also for a file that is no chat."""
        refuse_other_file(path)
        text = json.dumps({"haversack_chat": VERSION, **asdict(self)}, ensure_ascii=False, indent=1)
        try:
            write_whole(path, f"{text}\n".encode(), synced=True)
        except OSError as error:
            raise StorageError(
                f"cannot write the chat to {path}: {error.strerror}: give another file"
            ) from error

    @classmethod
    def load(cls, path: Path) -> "KeptChat":
        """Read the chat at `path`. Raises PromptError if there is none that can be read."""
        try:
            found: Any = json.loads(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise PromptError(f"cannot read the chat {path}: {error.strerror}") from error
        except ValueError as error:
            raise PromptError(
                f"{path} is no chat: {error}: give a file that /save wrote"
            ) from error
        version = found.get("haversack_chat") if isinstance(found, dict) else None
        if version not in (VERSION, _OLD_VERSION):
            raise PromptError(
                f"{path} is no chat of version {VERSION} (it says {version!r}): give a file that"
                " /save of this haversack wrote"
            )
        lacking = [name for name in ("model", "system", "turns") if name not in found]
        if lacking:
            raise _damaged(path, f"it lacks {lacking[0]!r}")
        try:
            turns = [(str(said), str(reply)) for said, reply in found["turns"]]
        except (TypeError, ValueError) as error:
            raise _damaged(path, "a turn is not a pair of texts") from error
        kv = found.get("kv")
        if not (kv is None or (isinstance(kv, str) and Path(kv).name == kv)):
            raise _damaged(path, f"{kv!r} is not the name of a file beside it")
        return cls(str(found["model"]), found.get("model_id"), found["system"], turns, kv)


def _damaged(path: Path, why: str) -> PromptError:
    return PromptError(f"{path} is damaged, {why}: give another file")


def refuse_other_file(path: Path) -> None:
    """Raise StorageError if `path` is something that a chat must not replace: anything but a chat
    or an empty file."""
    try:
        if not path.is_file():
            is_other = path.exists()  # a folder, a device or a pipe
        else:
            with path.open("rb") as file:
                begin = file.read(_MARK_WITHIN_BYTES)
            is_other = bool(begin) and _MARK not in begin
    except OSError as error:
        raise StorageError(
            f"{path} exists and cannot be read: {error.strerror}: give another file"
        ) from error
    if is_other:
        raise StorageError(
            f"{path} exists and is no chat: only a chat is replaced; give another file, or remove"
            " this one first"
        )
