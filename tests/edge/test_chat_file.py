"""Chats in files."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from haversack.devices.errors import PromptError, StorageError
from haversack.edge.chat_file import KeptChat

CHAT = KeptChat("model.gguf", "a1b2", "Be brief.", [("Hi", "Hello — 你好"), ("More", "")], "x.kv")


@pytest.mark.parametrize("chat", [CHAT, KeptChat("m", None, None, [])])
def test_what_was_saved_is_loaded(chat: KeptChat, tmp_path: Path) -> None:
    chat.save(tmp_path / "chat.json")
    assert KeptChat.load(tmp_path / "chat.json") == chat
    assert os.listdir(tmp_path) == ["chat.json"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "is no chat"),
        ("[]", "no chat of version 2"),
        ('{"haversack_chat": 3}', r"version 2 \(it says 3\)"),
        (
            '{"haversack_chat": 2, "model": "m", "system": null, "turns": [], "kv": "../other"}',
            "is not the name of a file beside it",
        ),
        ('{"haversack_chat": 1, "model": "m", "system": null, "turns": [["a"]]}', "pair of texts"),
        ('{"haversack_chat": 1}', "damaged, it lacks 'model'"),
    ],
)
def test_other_files_are_refused(text: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "chat.json").write_text(text)
    with pytest.raises(PromptError, match=said):
        KeptChat.load(tmp_path / "chat.json")


def test_a_chat_of_an_older_version_is_loaded(tmp_path: Path) -> None:
    text = '{"haversack_chat": 1, "model": "m", "system": null, "turns": [["a", "b"]]}'
    (tmp_path / "chat.json").write_text(text)
    assert KeptChat.load(tmp_path / "chat.json") == KeptChat("m", None, None, [("a", "b")])


def test_where_nothing_can_be_written(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="give another file"):
        CHAT.save(tmp_path / "missing" / "chat.json")
    with pytest.raises(PromptError, match="cannot read"):
        KeptChat.load(tmp_path / "missing.json")


def test_only_a_chat_is_replaced(tmp_path: Path) -> None:
    thesis, empty, chat = (tmp_path / name for name in ("thesis.md", "empty", "chat.json"))
    thesis.write_text("thesis")
    for path in (thesis, tmp_path):
        with pytest.raises(StorageError, match="is no chat: only a chat is replaced; give another"):
            CHAT.save(path)
    assert thesis.read_text() == "thesis"
    empty.touch()
    chat.write_text('{"haversack_chat": 1, "turns": []}')
    for path in (empty, chat):
        CHAT.save(path)
        assert KeptChat.load(path) == CHAT


_SAVE_FOR_EVER = """
import sys
from pathlib import Path
from haversack.edge.chat_file import KeptChat
number = 0
while True:
    number += 1
    KeptChat("m", None, None, [(str(number), "x" * 100_000)]).save(Path(sys.argv[1]))
"""


@pytest.mark.slow
def test_a_killed_process_leaves_a_whole_file(tmp_path: Path) -> None:
    path, latest = tmp_path / "chat.json", 0
    for round_ in range(10):
        process = subprocess.Popen([sys.executable, "-c", _SAVE_FOR_EVER, str(path)])
        before = path.stat().st_mtime_ns if path.exists() else None
        while (path.stat().st_mtime_ns if path.exists() else None) == before:
            time.sleep(0.001)
        time.sleep(0.003 * round_)
        process.send_signal(signal.SIGKILL)
        process.wait()
        ((number, text),) = KeptChat.load(path).turns
        assert len(text) == 100_000
        latest = max(latest, int(number))
    assert latest > 0
