"""Chats that are saved and resumed with their keys and values."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from haversack import edge
from haversack.devices.errors import PromptError
from haversack.edge.chat_file import KeptChat
from haversack.edge.chat_session import load_chat, save_chat

TinyModel = Callable[..., Path]
STORY = "Once upon a time, there was a little girl named Lily."
TURNS = [(STORY, "She was happy.")]


def opened(path: Path, trunk_dir: Path, threads: int = 1) -> edge.Model:
    options = edge.LoadOptions(cache_dir=trunk_dir, warm_start=False)
    return edge.load(path, ram="2GiB", ctx=256, threads=threads, options=options)


@pytest.fixture
def model(known_answer_model: Path, trunk_dir: Path) -> Iterator[edge.Model]:
    with opened(known_answer_model, trunk_dir) as model:
        yield model


def test_a_resumed_chat_computes_new_tokens_alone(
    known_answer_model: Path, model: edge.Model, trunk_dir: Path, tmp_path: Path
) -> None:
    begun = model.generate(STORY, 20, temperature=0)
    text = STORY + begun.text + " One day"
    told = save_chat(model, tmp_path / "chat.json", None, TURNS)
    held = begun.prompt_tokens + 19  # the last token was chosen and not computed
    assert told == f"1 turn is in {tmp_path / 'chat.json'}, with the KV cache of {held} tokens"
    expected = model.generate(text, 20, temperature=0)
    assert expected.text
    with opened(known_answer_model, trunk_dir) as later:
        kept, told = load_chat(later, tmp_path / "chat.json")
        assert (kept.turns, told) == (TURNS, f"1 turn, with the KV cache of {held} tokens")
        resumed = later.generate(text, 20, temperature=0)
        assert resumed.text == expected.text
        assert resumed.stats is not None
        assert resumed.stats.prompt_tokens == resumed.prompt_tokens - held
        later.check_integrity()


def test_each_save_has_one_file_of_keys_and_values(model: edge.Model, tmp_path: Path) -> None:
    path = tmp_path / "chat.json"
    for _ in range(2):
        save_chat(model, path, None, TURNS)
        kv_name = KeptChat.load(path).kv
        assert kv_name is not None
        assert sorted(os.listdir(tmp_path)) == ["chat.json", kv_name]


def test_a_chat_of_another_model_is_refused(
    model: edge.Model, tiny_model: TinyModel, trunk_dir: Path, tmp_path: Path
) -> None:
    path = tmp_path / "chat.json"
    save_chat(model, path, None, TURNS)
    with opened(tiny_model(), trunk_dir) as other:
        with pytest.raises(
            PromptError, match=r"is one of stories260k-moe.gguf, the model is qwen3"
        ):
            load_chat(other, path)
        assert load_chat(other, path, words_alone=True)[0].turns == TURNS


def test_what_is_computed_otherwise_is_computed_again(
    known_answer_model: Path, model: edge.Model, trunk_dir: Path, tmp_path: Path
) -> None:
    """So is what is damaged, and what is not there."""
    path = tmp_path / "chat.json"
    model.generate(STORY, 5, temperature=0).text  # noqa: B018
    save_chat(model, path, None, TURNS)
    with opened(known_answer_model, trunk_dir, threads=2) as other:
        kept, told = load_chat(other, path)
        assert kept.turns == TURNS
        assert "computed again: the KV cache cannot be used: its --threads is 1, and 2 now" in told
    assert kept.kv is not None
    kv_path = path.with_name(kept.kv)
    kv_path.write_bytes(kv_path.read_bytes()[:-9] + b"\0" * 9)
    assert "is damaged: its checksum is wrong" in load_chat(model, path)[1]
    kv_path.unlink()
    assert "computed again: cannot read the KV cache" in load_chat(model, path)[1]


_SAVE_FOR_EVER = """
import sys
from pathlib import Path
from haversack import edge
from haversack.edge.chat_session import save_chat
options = edge.LoadOptions(cache_dir=sys.argv[3], warm_start=False)
with edge.load(sys.argv[1], ram="2GiB", ctx=256, threads=1, options=options) as model:
    model.generate("Once upon a time", 40, temperature=0).text
    for number in range(1_000_000):
        save_chat(model, Path(sys.argv[2]), None, [(str(number), "")])
        print(number, flush=True)
"""


def test_sigkill_loses_no_older_save(
    known_answer_model: Path, model: edge.Model, trunk_dir: Path, tmp_path: Path
) -> None:
    path = tmp_path / "chat.json"
    command = [sys.executable, "-c", _SAVE_FOR_EVER, known_answer_model, path, trunk_dir]
    done = 0
    for saves in (1, 7, 20):  # other moments of a save each time
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            for _ in range(saves):
                done = int(process.stdout.readline())
            process.send_signal(signal.SIGKILL)
        kept, told = load_chat(model, path)
        assert int(kept.turns[0][0]) >= done
        assert "with the KV cache of" in told
    save_chat(model, path, None, [])
    assert len(os.listdir(tmp_path)) <= 2 + 3  # words that were being written may be left
