"""Texts on disk: what a context holds of a text waits in a folder once another text takes its
place, and is brought back, with the same bits, for a prompt that begins as it does.

A file's name says what decided its bits, how its text begins and what it holds, so that few files
are opened for a prompt. Several processes may use a folder.
"""

import contextlib
import hashlib
import logging
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from haversack.devices.errors import HaversackError, PromptError, StorageError
from haversack.devices.storage import remove_parts
from haversack.devices.units import format_bytes
from haversack.edge.call import Call
from haversack.edge.kv_keeping import KvKeeper
from haversack.edge.sequence import TokenSequence
from haversack.offload.kv_file import KvAbout, read_about

_log = logging.getLogger("haversack.kv")

_HEAD_TOKENS = 32  # of the beginning that a file's name tells; shorter texts are not kept
_NAME = re.compile(r"[0-9a-f]{12}-[0-9a-f]{12}-[0-9a-f]{16}\.kv(\.\w{8}(\.part)?)?")


class KvDisk:
    """The texts in `folder`, at most `limit_bytes` of them. Those that were not used for longest
    leave."""

    def __init__(self, folder: Path, limit_bytes: int, keeper: KvKeeper) -> None:
        """Raises PromptError for a model whose texts cannot be kept, StorageError."""
        if keeper.why_not:
            raise PromptError(f"--kv-disk keeps nothing of this model: {keeper.why_not}")
        self._folder, self._limit_bytes, self._keeper = folder, limit_bytes, keeper
        self._kind = _hash(repr(sorted(keeper.bits.items())).encode())[:12]
        remove_parts(folder, "*")
        self.num_kept = self.num_brought = 0  # texts, since the model was loaded

    def before(self, call: Call, num_shared: int) -> None:
        """Prepare the sequence of a call that begins: bring back the text that `call` can use most
        of, and keep what its sequence loses. Of another sequence it can use `num_shared` tokens.
        What fails is logged and left out."""
        sequence = call.sequence
        assert sequence is not None
        if call.is_windowed:  # what is forgotten is of no use to another prompt
            return
        kept = call.num_kept(sequence)
        found = None if call.begins_anew else self._best(call, sequence, max(kept, num_shared))
        if len(sequence.tokens) - (0 if found else kept) >= _HEAD_TOKENS:
            self.put(sequence, spare=found)
        if found is not None:
            try:
                self._keeper.read(sequence, found)
                self.num_brought += 1
            except HaversackError as error:
                _log.warning("%s; its text is computed again", error)
                found.unlink(missing_ok=True)

    def put(self, sequence: TokenSequence, spare: Path | None = None) -> None:
        """Keep what a context holds of a sequence, and remove others to make room, but not `spare`.
        What fails is logged."""
        tokens = sequence.tokens
        held = sequence.context.num_tokens(sequence.number)
        if len(tokens) < _HEAD_TOKENS or held != len(tokens):
            return
        path = self._folder / f"{self._beginning(tokens)}{_hash(_bytes_of(tokens))[:16]}.kv"
        alike = self._alike(tokens)
        try:
            whole = [other for other, text in alike if _holds(text.tokens, tokens, sequence)]
            if whole:
                os.utime(whole[0])
                return
            self._folder.mkdir(parents=True, exist_ok=True)
            if self._make_room(self._keeper.num_bytes(sequence), {path, spare}):
                self._keeper.write(sequence, path)
                self.num_kept += 1
                for other, text in alike:
                    if _holds(tokens, text.tokens, sequence):
                        other.unlink(missing_ok=True)
        except (HaversackError, OSError) as error:
            _log.warning("%d tokens are not kept: %s", len(tokens), error)

    def _alike(self, tokens: Sequence[int]) -> list[tuple[Path, KvAbout]]:
        """Return the texts that begin as `tokens` do, without those that cannot be read."""
        found = list[tuple[Path, KvAbout]]()
        for path in self._folder.glob(f"{self._beginning(tokens)}*.kv"):
            with contextlib.suppress(HaversackError):  # removed by another process, or damaged
                found.append((path, read_about(path)))
        return found

    def _beginning(self, tokens: Sequence[int]) -> str:
        return f"{self._kind}-{_hash(_bytes_of(tokens[:_HEAD_TOKENS]))[:12]}-"

    def _best(self, call: Call, sequence: TokenSequence, kept: int) -> Path | None:
        """Return the file of whose text `call` can use most, if that is worth it, as one that was
        just used."""
        most, found = kept + _HEAD_TOKENS - 1, None
        if len(call.tokens) < _HEAD_TOKENS:
            return None
        for path, about in self._alike(call.tokens):
            text = TokenSequence(sequence.number, sequence.context)
            text.adopt(about.tokens, about.batch_ends)
            usable = call.num_kept(text)
            if usable > most and len(about.tokens) <= sequence.context.ctx_tokens:
                most, found = usable, path
        if found is not None:
            with contextlib.suppress(OSError):
                os.utime(found)
        return found

    def _make_room(self, num_bytes: int, spared: set[Path | None]) -> bool:
        """Remove texts until there is room for `num_bytes`; return whether there is."""
        files = sorted(kv_files(self._folder), key=lambda each: each[1].st_mtime_ns)
        left_bytes = self._limit_bytes - num_bytes - sum(status.st_size for _, status in files)
        for path, status in files:
            if left_bytes >= 0 or num_bytes > self._limit_bytes:
                break
            if path not in spared:
                path.unlink(missing_ok=True)
                left_bytes += status.st_size
        if left_bytes < 0:
            limit = format_bytes(self._limit_bytes)
            _log.info("%s do not fit into --kv-disk %s", format_bytes(num_bytes), limit)
        return left_bytes >= 0


def _holds(tokens: Sequence[int], others: Sequence[int], sequence: TokenSequence) -> bool:
    """Return whether `others` are of no use beside `tokens`: they are the same, or their beginning
    for a sequence that drops parts."""
    if len(tokens) == len(others) or sequence.drops_parts:
        return list(tokens[: len(others)]) == list(others)
    return False


@dataclass(frozen=True)
class KeptText:
    """A text on disk: the model that computed it, and what it takes."""

    path: Path
    model: str
    num_tokens: int
    disk_bytes: int


def list_texts(folder: Path) -> list[KeptText]:
    """Return the texts in `folder`; one without tokens is damaged or unfinished."""
    texts = list[KeptText]()
    for path, status in kv_files(folder):
        model, num_tokens = "unfinished or unknown", 0
        with contextlib.suppress(HaversackError):
            about = read_about(path)
            model, num_tokens = about.bits.get("model", model), len(about.tokens)
        texts.append(KeptText(path, model, num_tokens, status.st_size))
    return sorted(texts, key=lambda text: text.path)


def remove_texts(folder: Path) -> int:
    """Remove all texts from `folder`; return the bytes that this frees. Raises StorageError."""
    freed_bytes = 0
    try:
        for path, status in kv_files(folder):
            path.unlink(missing_ok=True)
            freed_bytes += status.st_size
    except OSError as error:
        raise StorageError(f"cannot remove the texts from {folder}: {error}") from error
    return freed_bytes


def kv_files(folder: Path) -> list[tuple[Path, os.stat_result]]:
    """Return the texts in `folder`, also those that a killed process left unfinished."""
    found = list[tuple[Path, os.stat_result]]()
    for path in folder.iterdir() if folder.is_dir() else ():
        with contextlib.suppress(OSError):
            if _NAME.fullmatch(path.name):
                found.append((path, path.stat()))
    return found


def _bytes_of(tokens: Sequence[int]) -> bytes:
    return np.asarray(tokens, np.int32).tobytes()


def _hash(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
