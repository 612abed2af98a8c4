"""Chats saved and resumed: their words in a file that people can read, and beside it the keys and
values (KV) of their tokens, so that no token of them is computed again.

The file of words names the file of keys and values, which has a new name for each save. So whenever
a process is killed, the words and the keys and values of an older save stay whole.
"""

import glob
import secrets
from collections.abc import Sequence
from pathlib import Path

from haversack.devices.errors import HaversackError, PromptError, StorageError
from haversack.edge.chat_file import KeptChat, Turn, refuse_other_file
from haversack.edge.console import counted
from haversack.edge.model import Model
from haversack.quant.identity import content_name


def save_chat(model: Model, path: Path, system: str | None, turns: Sequence[Turn]) -> str:
    """Write a chat to `path`, and beside it what the model holds of its tokens; return in words
    what was written. Where the keys and values cannot be kept, the words are written alone. Raises
    StorageError, also for a file that is no chat."""
    refuse_other_file(path)
    kv_path = path.with_name(f"{path.name}.{secrets.token_hex(4)}.kv")
    kv_name: str | None = kv_path.name
    try:
        told = f", with the KV cache of {model.save_kv(kv_path)} tokens"
    except (PromptError, StorageError) as error:
        kv_name, told = None, f" without a KV cache: {error}"
    identity = content_name(model.plan.geometry)
    try:
        KeptChat(model.plan.path.name, identity, system, list(turns), kv_name).save(path)
    except BaseException:
        kv_path.unlink(missing_ok=True)
        raise
    for other in path.parent.glob(f"{glob.escape(path.name)}.????????.kv*"):
        if other.name != kv_name:  # of an older save, or what a killed process left
            other.unlink(missing_ok=True)
    are = "is" if len(turns) == 1 else "are"
    return f"{counted(len(turns), 'turn')} {are} in {path}{told}"


def load_chat(model: Model, path: Path, *, words_alone: bool = False) -> tuple[KeptChat, str]:
    """Return the chat that was saved to `path`, and in words what the model holds of it now.

    With `words_alone` its keys and values are not read, and another model may have written it.
    Where they cannot be used, what is wrong is said, and they are computed again with the next
    message. Raises PromptError for a chat of another model, and what `KeptChat.load` raises.
    """
    kept = KeptChat.load(path)
    told = counted(len(kept.turns), "turn")
    if words_alone:
        return kept, told
    _refuse_other_model(kept, model, path)
    if kept.kv is None:
        return kept, told
    try:
        num_tokens = model.load_kv(path.with_name(kept.kv))
    except HaversackError as error:
        return kept, f"{told}; their tokens are computed again: {error}"
    return kept, f"{told}, with the KV cache of {num_tokens} tokens"


def _refuse_other_model(kept: KeptChat, model: Model, path: Path) -> None:
    name = model.plan.path.name
    if kept.model_id is None and kept.model == name:  # of a version that kept only the name
        return
    if kept.model_id != content_name(model.plan.geometry):
        same = ", of the same name but not the same content" if kept.model == name else ""
        raise PromptError(
            f"the chat in {path} is one of {kept.model}{same}, the model is {name}: start haversack"
            f" chat with that one, or /load --words {path} for the words alone"
        )
