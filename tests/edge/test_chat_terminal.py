"""The chat on a terminal, as people use it."""

import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from prompt_toolkit.application import create_app_session
from prompt_toolkit.completion import CompleteEvent
from prompt_toolkit.document import Document
from prompt_toolkit.input import PipeInput, create_pipe_input
from prompt_toolkit.output import DummyOutput

from haversack.edge.chat_settings import COMMANDS
from haversack.edge.chat_terminal import CommandCompleter, TerminalTalk

if sys.platform != "win32":
    import fcntl
    import pty
    import struct
    import termios

CHAT = [sys.executable, "-m", "haversack.edge", "chat"]
CTX_TOKENS = 512
PROMPT = ">"
USUAL = "\x1b[?2004l\x1b[?25h"  # no marks around what is pasted, and a cursor
WHERE = "\x1b[6n"  # asks the terminal in which line the cursor is


# ----------------------------------------------------------------------- typing
@pytest.fixture
def keys() -> Generator[PipeInput]:
    """Keys that are pressed, for whatever is made beside it."""
    with create_pipe_input() as pressed, create_app_session(pressed, DummyOutput()):
        yield pressed


def test_enter_sends_and_alt_enter_begins_a_line(keys: PipeInput, tmp_path: Path) -> None:
    talk = TerminalTalk(tmp_path / "history")
    keys.send_text("one\x1b\rtwo\r")
    assert talk.read(CTX_TOKENS) == "one\ntwo"
    keys.send_text('"""one\rtwo\r"""\r')
    assert talk.read(CTX_TOKENS) == "one\ntwo"


def test_a_draft_can_be_changed(keys: PipeInput, tmp_path: Path) -> None:
    keys.send_text("\x7fe\r")
    assert TerminalTalk(tmp_path / "history").read(CTX_TOKENS, "Onca") == "Once"


def test_what_was_typed_comes_back_in_the_next_chat(keys: PipeInput, tmp_path: Path) -> None:
    path = tmp_path / "new" / "history"
    keys.send_text("A secret\r")
    TerminalTalk(path).read(CTX_TOKENS)
    keys.send_text("\x1b[A\r")  # the key that goes up
    assert TerminalTalk(path).read(CTX_TOKENS) == "A secret"
    assert os.name == "nt" or path.stat().st_mode & 0o077 == 0


def test_a_history_that_cannot_be_kept_is_told(
    keys: PipeInput, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    talk = TerminalTalk(tmp_path / "file" / "history")
    assert "what you type is not kept" in capsys.readouterr().err
    keys.send_text("Once\r")
    assert talk.read(CTX_TOKENS) == "Once"


def test_ctrl_c_twice_or_ctrl_d_leaves(keys: PipeInput, tmp_path: Path) -> None:
    talk = TerminalTalk(tmp_path / "history")
    keys.send_text("half\x03whole\r")
    assert talk.read(CTX_TOKENS) == "whole"
    keys.send_text("\x03\x03")
    assert talk.read(CTX_TOKENS) is None
    keys.send_text("\x04")
    assert talk.read(CTX_TOKENS) is None


def completions(text: str) -> list[str]:
    found = CommandCompleter().get_completions(Document(text, len(text)), CompleteEvent())
    return [each.text for each in found]


def test_commands_settings_and_files_are_completed(tmp_path: Path) -> None:
    assert completions("/s") == [each for each in COMMANDS if each.startswith("/s")]
    assert completions("/set tem") == ["temp", "temperature"]
    (tmp_path / "chat.json").touch()
    assert completions(f"/load {tmp_path}/ch") == ["at.json"]
    assert completions("") == completions("Once") == completions("/regen x") == []


# --------------------------------------------------------------------- terminal
class Terminal:
    """A chat on a terminal: what it shows, keys and Ctrl-C for it."""

    def __init__(self, kind: str, *options: str) -> None:
        self._ours, theirs = pty.openpty()
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
        environment = {**os.environ, "TERM": kind}
        streams: dict[str, Any] = dict.fromkeys(("stdin", "stdout", "stderr"), theirs)
        self.process = subprocess.Popen([*CHAT, *options], env=environment, **streams)
        os.close(theirs)
        self._shown = ""

    def type(self, keys: str) -> None:
        os.write(self._ours, keys.encode())

    @property
    def modes(self) -> list[Any]:
        return termios.tcgetattr(self._ours)

    def press_ctrl_c(self) -> None:
        self.process.send_signal(signal.SIGINT)

    def wait_for_prompt(self) -> None:
        """Return once the process sleeps and takes single keys: a signal while the prompt sets
        itself up might come to nobody."""
        self.wait_for(PROMPT)
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
                new = os.read(self._ours, 4096).decode(errors="replace")
                if WHERE in new:
                    self.type("\x1b[20;1R")
                self._shown += new
        before, _, self._shown = self._shown.partition(words)
        return before

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self._ours)


@contextmanager
def on_terminal(kind: str, *options: str) -> Generator[Terminal]:
    if sys.platform == "win32":
        pytest.skip("no pseudo-terminals there")
    terminal = Terminal(kind, *options)
    try:
        yield terminal
    finally:
        terminal.close()


@pytest.mark.parametrize("kind", ["dumb", "xterm-256color"])
def test_ctrl_c_stops_the_reply_and_twice_the_chat(known_answer_model: Path, kind: str) -> None:
    options = (str(known_answer_model), "--ctx", "100000", "--temp", "0")
    with on_terminal(kind, *options) as terminal:
        terminal.wait_for(PROMPT)
        terminal.type("Once\n")
        terminal.wait_for("upon a")
        terminal.press_ctrl_c()
        terminal.wait_for("(stopped)")
        terminal.wait_for_prompt()
        terminal.press_ctrl_c()
        terminal.wait_for("Ctrl-C again or Ctrl-D leaves the chat")
        terminal.wait_for_prompt()
        terminal.press_ctrl_c()
        assert terminal.process.wait(timeout=300) == 0


def test_ctrl_d_leaves(known_answer_model: Path) -> None:
    with on_terminal("dumb", str(known_answer_model), "-n", "6", "--temp", "0") as terminal:
        terminal.wait_for("/help shows the commands")
        terminal.wait_for(PROMPT)
        terminal.type("Once\n")
        assert "Traceback" not in terminal.wait_for("(stopped at the token limit")
        terminal.wait_for_prompt()  # before, the terminal itself would take the key
        terminal.type("\x04")
        assert terminal.process.wait(timeout=300) == 0


@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP"])
def test_a_signal_that_ends_the_chat_leaves_the_terminal_as_it_was(
    known_answer_model: Path, name: str
) -> None:
    with on_terminal("xterm-256color", str(known_answer_model)) as terminal:
        before = terminal.modes
        terminal.wait_for("/help shows the commands")
        terminal.wait_for_prompt()
        assert terminal.modes != before
        terminal.process.send_signal(getattr(signal, name))
        terminal.wait_for(USUAL)
        assert terminal.process.wait(timeout=300) == -getattr(signal, name)
        assert terminal.modes == before


def test_figures_stand_below_the_prompt(known_answer_model: Path) -> None:
    with on_terminal("xterm-256color", str(known_answer_model), "-n", "40") as terminal:
        terminal.wait_for(PROMPT)
        terminal.type("Once\r")
        terminal.wait_for("(stopped at the token limit")
        terminal.wait_for(" tok/s | ")
