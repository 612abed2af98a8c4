"""The chat through pipes, as a script uses it."""

import os
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from haversack import edge
from haversack.edge.given_text import longest_text_bytes

CHAT = [sys.executable, "-m", "haversack.edge", "chat"]

TinyModel = Callable[..., Path]
Chat = Callable[..., subprocess.CompletedProcess[str]]


def quiet() -> dict[str, str]:
    """The environment of now, in which idle threads do not spin: tests share cores."""
    return {**os.environ, "OMP_WAIT_POLICY": "passive"}


def piped(model: Path, text: str, *options: str) -> subprocess.CompletedProcess[str]:
    """Pipe `text` into a chat with `model`."""
    command = [*CHAT, str(model), *options]
    return subprocess.run(
        command, input=text, capture_output=True, text=True, timeout=300, env=quiet()
    )


@pytest.fixture
def chat(known_answer_model: Path) -> Chat:
    """A function that pipes text into a chat with the known-answer model."""
    return partial(piped, known_answer_model)


# ---------------------------------------------------------------------- pipes
def test_each_line_is_a_message_and_each_reply_a_line(chat: Chat) -> None:
    result = chat("Once\n\nThe end\n", "-n", "5", "--temp", "0")
    assert result.returncode == 0
    assert result.stdout.count("\n") == 2
    assert ">" not in result.stdout
    assert chat("Once\n\nThe end\n", "-n", "5", "--temp", "0").stdout == result.stdout


def test_lines_between_quotes_are_one_message(chat: Chat) -> None:
    quoted = chat('"""One day\na bird\nflew"""\n', "-n", "4", "--temp", "0")
    assert quoted.stdout.count("\n") == 1
    unfinished = chat('"""One day\na bird\nflew', "-n", "4", "--temp", "0")
    assert unfinished.stdout == quoted.stdout


@pytest.mark.slow
def test_a_seed_repeats_a_chat_whose_replies_differ(chat: Chat) -> None:
    text = "Once\n/regen\n/clear\nOnce\n"
    first = chat(text, "-n", "24", "--seed", "3").stdout
    assert first == chat(text, "-n", "24", "--seed", "3").stdout
    assert len(set(first.splitlines())) > 1


@pytest.mark.slow
def test_an_answer_made_anew_replaces_the_last(chat: Chat) -> None:
    greedy = ("-n", "6", "--temp", "0")
    twice = chat("Once\n/regen\nThen\n", *greedy).stdout.splitlines()
    once = chat("Once\nThen\n", *greedy).stdout.splitlines()
    assert twice == [once[0], *once]


@pytest.mark.slow
def test_a_turn_that_fails_leaves_no_trace(chat: Chat) -> None:
    options = ("-n", "6", "--temp", "0", "--ctx", "64")
    failed = chat("Once\n" + "word " * 99 + "\nThen\n", *options)
    assert "the context holds 64" in failed.stderr
    assert failed.returncode == 0
    assert failed.stdout == chat("Once\nThen\n", *options).stdout


def test_a_full_context_names_what_helps_in_the_chat(chat: Chat) -> None:
    """The chat goes on: once it is cleared there is room again."""
    options = ("-n", "20", "--temp", "0", "--ctx", "64")
    result = chat("Once\nThen\nOnce\nThen\nThen\n/clear\nOnce\n", *options)
    assert result.returncode == 0
    refused = [x for x in result.stderr.splitlines() if x.startswith("haversack: the chat has ")]
    assert refused and all("/clear" in line and "/set window on" in line for line in refused)
    replies = result.stdout.splitlines()
    assert replies[-1] == replies[0]


def test_a_window_leaves_out_the_oldest_turns(chat: Chat) -> None:
    options = ("-n", "20", "--temp", "0", "--ctx", "64")
    text = "Once\nThen\nOnce\nThen\nOnce\n"
    result = chat(text, *options, "--window")
    assert result.returncode == 0
    assert result.stdout.count("\n") == 5  # each was answered
    assert "the context is full: the oldest 2 turns are left out)" in result.stderr
    assert chat("/set window on\n" + text, *options).stdout == result.stdout
    assert "the oldest" not in chat("Once\n", *options, "--window").stderr


def test_a_message_that_alone_is_too_long_says_so(chat: Chat) -> None:
    for window in ((), ("--window",)):
        result = chat("Once\n" + "word " * 99 + "\n", "-n", "4", "--ctx", "64", *window)
        assert result.returncode == 0
        assert "the context holds 64" in result.stderr and "--ctx" in result.stderr


def long_text(kind: str) -> str:
    """A message that no context of 64 tokens can hold."""
    num_bytes = 3 * longest_text_bytes(ctx_tokens=64)
    return {
        "a line": "x" * num_bytes + "\n",
        "characters of two bytes": "x" + "é" * num_bytes + "\n",
        "a quoted line": '"""' + "x" * num_bytes + '"""\n',
        "quoted, of many lines": '"""' + "word\n" * (num_bytes // 4) + '"""\n',
        "quoted, with a long line": '"""Once\n' + "x" * num_bytes + '\nThen\n"""\n',
    }[kind]


@pytest.mark.parametrize(
    "kind",
    [
        "a line",
        "characters of two bytes",
        "a quoted line",
        "quoted, of many lines",
        "quoted, with a long line",
    ],
)
def test_of_a_message_that_no_context_holds_nothing_is_kept(chat: Chat, kind: str) -> None:
    options = ("-n", "4", "--temp", "0", "--ctx", "64")
    most_bytes = longest_text_bytes(ctx_tokens=64)
    result = chat("Once\n" + long_text(kind) + "/clear\nOnce\n", *options)
    first, again = result.stdout.splitlines()
    assert (result.returncode, first) == (0, again)
    told = [line for line in result.stderr.splitlines() if line.startswith("haversack: ")]
    assert len(told) == 1
    assert f"this message is longer than {most_bytes} bytes, more than a context of 64" in told[0]
    without_end = chat("Once\n" + long_text(kind).rstrip('\n"'), *options)
    assert (without_end.returncode, without_end.stdout) == (0, first + "\n")


def test_a_byte_order_mark_is_no_content(chat: Chat) -> None:
    greedy = ("-n", "6", "--temp", "0")
    assert chat("\ufeffOnce\n", *greedy).stdout == chat("Once\n", *greedy).stdout
    assert chat("\ufeff/system Tom\n").stderr == chat("/system Tom\n").stderr
    given = chat(" dog\n", *greedy, "--system", "\ufeffTom and his").stdout
    assert given == chat(" dog\n", *greedy, "--system", "Tom and his").stdout


def test_a_line_that_is_no_text_is_left_out(known_answer_model: Path) -> None:
    command = [*CHAT, str(known_answer_model), "-n", "3", "--temp", "0"]
    text = b"Once\na\xff\nOnce\n"
    result = subprocess.run(command, input=text, capture_output=True, timeout=300, env=quiet())
    assert result.returncode == 0
    assert result.stdout.count(b"\n") == 2
    assert b"this line is not UTF-8 text (invalid start byte): it is left out" in result.stderr


@pytest.mark.slow
def test_the_system_message_comes_first(chat: Chat) -> None:
    greedy = ("-n", "6", "--temp", "0")
    given = chat(" dog was\n", *greedy, "--system", "Tom and his")
    assert chat("/system Tom and his\n dog was\n", *greedy).stdout == given.stdout
    dropped = chat("/system -\n dog was\n", *greedy, "--system", "Tom and his")
    assert dropped.stdout == chat(" dog was\n", *greedy).stdout != given.stdout


def test_commands_answer_on_stderr(chat: Chat) -> None:
    result = chat("/help\n/set top-k 3\n/plan\n/stats\n/regen\n/nonsense\n/exit\nnever\n")
    assert (result.returncode, result.stdout) == (0, "")
    for words in (
        "/clear",
        "top_k 3",
        "all experts fit",
        "0 tokens",
        "haversack: nothing was said yet",
        "haversack: /nonsense is no command",
    ):
        assert words in result.stderr


def test_a_model_without_a_template_is_refused(tiny_model: TinyModel) -> None:
    result = piped(tiny_model(), "hello\n")
    assert (result.returncode, result.stdout) == (2, "")
    assert "no chat template" in result.stderr


# ---------------------------------------------------------------------- files
def test_a_chat_is_saved_undone_and_gone_on_with(chat: Chat, tmp_path: Path) -> None:
    path = tmp_path / "chat.json"
    options = ("-n", "5", "--temp", "0")
    first = chat(f"Once\n/save {path}\n/undo\n/undo\n/save\n", *options)
    assert "1 turn is in" in first.stderr and "forgotten: Once" in first.stderr
    assert "nothing to undo" in first.stderr and "/save lacks a file" in first.stderr
    whole = chat("Once\nAgain\n", *options)
    resumed = chat(f"/load {path}\nAgain\n", *options)
    assert first.stdout + resumed.stdout == whole.stdout
    assert "1 turn, with the KV cache of" in resumed.stderr


# ------------------------------------------------------------- the last message
def test_a_message_that_is_edited_is_answered_in_place_of_the_last(chat: Chat) -> None:
    options = ("-n", "5", "--temp", "0")
    edited = chat("Once\nNo\n/edit Then\n/edit\nOnce\n", *options)
    assert "/edit lacks a text" in edited.stderr
    once, _, *replies = edited.stdout.splitlines()
    assert [once, *replies] == chat("Once\nThen\nOnce\n", *options).stdout.splitlines()
    assert "nothing was said yet" in chat("/edit Once\n").stderr


def test_the_last_message_is_that_before_one_forgotten_or_that_of_a_chat_loaded(
    chat: Chat, tmp_path: Path
) -> None:
    path, options = tmp_path / "chat.json", ("-n", "5", "--temp", "0")
    once, _, regenerated = chat(
        f"Once\n/save {path}\nThen\n/undo\n/regen\n", *options
    ).stdout.splitlines()
    edited = chat(f"/load {path}\n/edit Once\n", *options).stdout.splitlines()
    assert [regenerated, *edited] == [once, once]


# ------------------------------------------------------------------------ models
def test_another_model_goes_on_with_the_chat(chat: Chat, tiny_model: TinyModel) -> None:
    """A model that cannot be had leaves the chat as it was."""
    options = ("-n", "5", "--temp", "0")
    alone = chat("Once\nThen\n", *options)
    refused = chat(f"Once\n/model {tiny_model()}\n/model nothing.gguf\nThen\n/model\n", *options)
    assert refused.stdout == alone.stdout
    assert "no chat template" in refused.stderr and "does not exist" in refused.stderr
    assert refused.stderr.count("model: ") == 1
    changed = chat(f"Once\n/model {edge.builtin_model()}\nThen\n", *options)
    once, then = changed.stdout.splitlines()
    assert once == alone.stdout.splitlines()[0] and then != alone.stdout.splitlines()[1]
    assert "model: tales-moe.gguf" in changed.stderr
