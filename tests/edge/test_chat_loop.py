"""The chat: through pipes as a script uses it, and on a terminal as people do."""

import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest

from haversack.devices.errors import PromptError
from haversack.edge.chat_loop import ChatSettings
from haversack.edge.given_text import longest_text_bytes
from haversack.edge.sampling import Sampling

if sys.platform != "win32":
    import pty
    import termios

CHAT = [sys.executable, "-m", "haversack.edge", "chat"]
QUIET = {**os.environ, "OMP_WAIT_POLICY": "passive", "TERM": "dumb"}

TinyModel = Callable[..., Path]
Chat = Callable[..., subprocess.CompletedProcess[str]]


def piped(model: Path, text: str, *options: str) -> subprocess.CompletedProcess[str]:
    """Pipe `text` into a chat with `model`."""
    command = [*CHAT, str(model), *options]
    return subprocess.run(
        command, input=text, capture_output=True, text=True, timeout=300, env=QUIET
    )


@pytest.fixture
def chat(known_answer_model: Path) -> Chat:
    """A function that pipes text into a chat with the known-answer model."""
    return partial(piped, known_answer_model)


# ------------------------------------------------------------------- settings
def test_settings_change_by_the_names_of_their_options() -> None:
    settings = ChatSettings(Sampling())
    assert settings.changed("temp", "0.25").sampling.temperature == 0.25
    assert settings.changed("--top-k", "7").sampling.top_k == 7
    assert settings.changed("n", "12").max_tokens == 12
    assert settings.changed("n", "12").changed("max-tokens", "none").max_tokens is None
    assert settings.changed("n", "0").max_tokens == 0
    assert settings.changed("window", "on").window
    assert "top_k 40" in str(settings) and "window off" in str(settings)


def test_the_seed_shown_is_the_one_in_effect() -> None:
    settings = ChatSettings(Sampling(), chat_seed=5)
    assert "seed 5 (of the whole chat)," in str(settings)
    assert "seed 7," in str(settings.changed("seed", "7"))
    assert "seed 5 (" in str(settings.changed("seed", "7").changed("seed", "-1"))


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("volume", "11", 'no setting is called "volume"'),
        ("temp", "hot", "temp is 'hot': give a number"),
        ("top-k", "1.5", "top-k is '1.5': give a whole number"),
        ("top-p", "7", "top_p is 7.0"),
        ("stop", "x", 'no setting is called "stop"'),
        ("volume", "11", "give one of .*, n, .*, max_tokens, "),
        ("n", "-1", "n is -1: give 0 or more, or none"),
        ("--max-tokens", "-20", "max-tokens is -20: give 0 or more, or none"),
        ("n", "few", "n is 'few': give a whole number"),
        ("window", "open", "window is 'open': give on or off"),
    ],
)
def test_a_wrong_setting_says_so(name: str, value: str, words: str) -> None:
    with pytest.raises(PromptError, match=words):
        ChatSettings(Sampling()).changed(name, value)


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
    assert "the context is full: the oldest turn is left out)" in result.stderr
    assert chat("/set window on\n" + text, *options).stdout == result.stdout
    two_out = chat(text + "word " * 6 + "\n", *options, "--window").stderr
    assert "the context is full: the oldest 2 turns are left out)" in two_out
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
    result = subprocess.run(
        command, input=b"Once\na\xff\nOnce\n", capture_output=True, timeout=300, env=QUIET
    )
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


# ------------------------------------------------------------------- terminal
class Terminal:
    """A chat on a terminal: what it shows, keys and Ctrl-C for it."""

    def __init__(self, *options: str) -> None:
        self._ours, theirs = pty.openpty()
        command = [*CHAT, *options]
        self.process = subprocess.Popen(
            command, stdin=theirs, stdout=theirs, stderr=theirs, env=QUIET
        )
        os.close(theirs)
        self._shown = ""

    def type(self, keys: str) -> None:
        os.write(self._ours, keys.encode())

    def press_ctrl_c(self) -> None:
        self.process.send_signal(signal.SIGINT)

    def wait_for_prompt(self) -> None:
        """Return once the process sleeps and takes single keys: a signal while readline sets itself
        up would wait for the next key."""
        self.wait_for("> ")
        status = Path(f"/proc/{self.process.pid}/stat")
        while termios.tcgetattr(self._ours)[3] & termios.ICANON or (
            status.exists() and status.read_text().rpartition(")")[2].split()[0] != "S"
        ):
            time.sleep(0.01)

    def wait_for(self, words: str) -> str:
        """Read until `words` are shown; what was shown since the last call."""
        deadline_s = time.monotonic() + 300
        while words not in self._shown:
            assert time.monotonic() < deadline_s, self._shown
            if select.select([self._ours], [], [], 0.1)[0]:
                self._shown += os.read(self._ours, 4096).decode(errors="replace")
        before, _, self._shown = self._shown.partition(words)
        return before

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self._ours)


@contextmanager
def on_terminal(*options: str) -> Generator[Terminal]:
    if sys.platform == "win32":
        pytest.skip("no pseudo-terminals there")
    terminal = Terminal(*options)
    try:
        yield terminal
    finally:
        terminal.close()


def test_ctrl_c_stops_the_reply_and_twice_the_chat(known_answer_model: Path) -> None:
    with on_terminal(str(known_answer_model), "--ctx", "100000", "--temp", "0") as terminal:
        terminal.wait_for("> ")
        terminal.type("Once\n")
        terminal.wait_for(" upon a")
        terminal.press_ctrl_c()
        terminal.wait_for("(stopped)")
        terminal.wait_for_prompt()
        terminal.press_ctrl_c()
        terminal.wait_for("Ctrl-C again or Ctrl-D leaves the chat")
        terminal.wait_for_prompt()
        terminal.press_ctrl_c()
        assert terminal.process.wait(timeout=300) == 0


def test_ctrl_d_leaves(known_answer_model: Path) -> None:
    with on_terminal(str(known_answer_model), "-n", "6", "--temp", "0") as terminal:
        terminal.wait_for("/help shows the commands")
        terminal.wait_for("> ")
        terminal.type("Once\n")
        assert "Traceback" not in terminal.wait_for("(stopped at the token limit")
        terminal.wait_for("> ")
        terminal.type("\x04")
        assert terminal.process.wait(timeout=300) == 0


# ---------------------------------------------------------------------- files
def test_a_chat_is_saved_undone_and_gone_on_with(chat: Chat, tmp_path: Path) -> None:
    path = tmp_path / "chat.json"
    options = ("-n", "5", "--temp", "0")
    first = chat(f"Once\n/save {path}\n/undo\n/undo\n/save\n", *options)
    assert "1 turns are in" in first.stderr and "forgotten: Once" in first.stderr
    assert "nothing to undo" in first.stderr and "/save lacks a file" in first.stderr
    whole = chat("Once\nAgain\n", *options)
    resumed = chat(f"/load {path}\nAgain\n", *options)
    assert first.stdout + resumed.stdout == whole.stdout
    assert "1 turns, with the KV cache of" in resumed.stderr
