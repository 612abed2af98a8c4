"""A chat on a terminal: lines are edited, replies are drawn as they come, Ctrl-C stops them."""

import os
import signal
from collections.abc import Callable, Generator, Iterable
from contextlib import closing, contextmanager
from pathlib import Path
from types import FrameType

import platformdirs
from prompt_toolkit import PromptSession
from prompt_toolkit.completion import CompleteEvent, Completer, Completion, PathCompleter
from prompt_toolkit.document import Document
from prompt_toolkit.history import FileHistory, History, InMemoryHistory
from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent
from rich.console import Console

from haversack.devices.memory import anonymous_bytes
from haversack.edge.chat_pipe import QUOTES, write_reply
from haversack.edge.chat_reply import Reply
from haversack.edge.chat_settings import COMMANDS, NAMES, ChatSettings
from haversack.edge.chat_view import ReplyView
from haversack.edge.console import counted, notice, status_line
from haversack.edge.generation import Generation
from haversack.edge.model import Model
from haversack.edge.stats import Stats

Completions = Iterable[Completion]
_TAKE_A_FILE = ("/load", "/model", "/save")


class TerminalTalk:
    """Reads messages that are typed, and shows replies as documents."""

    interactive = True

    def __init__(self, history: Path | None = None) -> None:
        self._status = ""
        self._console = Console(highlight=False)
        self._session = PromptSession[str](
            history=_history(history or default_history()),
            multiline=True,
            prompt_continuation=_continuation,
            key_bindings=_keys(),
            completer=CommandCompleter(),
            complete_while_typing=False,
            enable_open_in_editor=True,
            tempfile_suffix=".md",
            bottom_toolbar=lambda: self._status or None,
        )

    # -------------------------------------------------------------- messages
    def read(self, ctx_tokens: int, draft: str = "") -> str | None:
        """Return the next message; None when Ctrl-D or twice Ctrl-C came."""
        del ctx_tokens  # nobody types more than the computer holds
        interrupted = False
        while True:
            try:
                return _message(self._session.prompt("> ", default=draft))
            except EOFError:
                return None
            except KeyboardInterrupt:
                if interrupted:
                    return None
                interrupted, draft = True, ""
                notice("Ctrl-C again or Ctrl-D leaves the chat")

    # --------------------------------------------------------------- replies
    def show(self, model: Model, reply: Reply, settings: ChatSettings) -> None:
        """Show the reply as it comes, its reasoning dim. Ctrl-C stops it."""
        figures = _Figures(model, reply.generation)
        with _cancelled_by_ctrl_c(reply.generation):
            if self._console.is_dumb_terminal:
                write_reply(reply, with_reasoning=True)
            else:
                self._draw(reply, settings, figures.line)
        self._status = figures.line()

    def _draw(self, reply: Reply, settings: ChatSettings, figures: Callable[[], str]) -> None:
        with (
            closing(reply.generation),
            ReplyView(self._console, settings.markdown, figures) as view,
        ):
            for piece in reply:
                view.push(piece.text, is_reasoning=piece.is_reasoning)


class _Figures:
    """What a reply takes, as a line, while it comes and afterwards."""

    def __init__(self, model: Model, generation: Generation) -> None:
        self._model, self._generation = model, generation
        self._before = model.stats()
        self._reading = f"reading {counted(generation.new_tokens, 'new token')}"

    def line(self) -> str:
        spent: Stats = self._generation.stats or self._model.stats().since(self._before)
        if not spent.tokens:
            return self._reading
        return status_line(spent, anonymous_bytes())


@contextmanager
def _cancelled_by_ctrl_c(generation: Generation) -> Generator[None]:
    """Let Ctrl-C stop the reply and not the chat, inside the block."""

    def cancel(_: int, __: FrameType | None) -> None:
        generation.cancel()

    before = signal.getsignal(signal.SIGINT)
    try:
        signal.signal(signal.SIGINT, cancel)
        yield
    finally:
        signal.signal(signal.SIGINT, before)


# -------------------------------------------------------------------- messages
def _message(typed: str) -> str:
    """Return what is meant by what was typed: quotes around several lines are none of them."""
    message = typed.strip()
    if message.startswith(QUOTES):
        message = message.removeprefix(QUOTES).removesuffix(QUOTES).strip("\n")
    return message


def _is_open(text: str) -> bool:
    """Whether quotes wait for their end."""
    begun = text.lstrip()
    return begun.startswith(QUOTES) and not begun.rstrip().removeprefix(QUOTES).endswith(QUOTES)


def _continuation(width: int, line_number: int, wrap_count: int) -> str:
    """Return what stands before a line that is not the first, or goes on below itself."""
    del width, line_number
    return "  " if wrap_count else ". "


def _keys() -> KeyBindings:
    keys = KeyBindings()

    @keys.add("enter")
    def _(event: KeyPressEvent) -> None:
        buffer = event.current_buffer
        if buffer.complete_state is not None:
            buffer.complete_state = None  # the completion is taken
        elif _is_open(buffer.text):
            buffer.insert_text("\n")
        else:
            buffer.validate_and_handle()

    @keys.add("escape", "enter")
    def _(event: KeyPressEvent) -> None:
        event.current_buffer.insert_text("\n")

    return keys


class CommandCompleter(Completer):
    """Completes commands, the settings behind /set, and files where a command takes one."""

    def __init__(self) -> None:
        self._files = PathCompleter(expanduser=True)

    def get_completions(self, document: Document, complete_event: CompleteEvent) -> Completions:
        """Yield what the text before the cursor may become."""
        command, space, rest = document.text_before_cursor.partition(" ")
        if not space:
            yield from _beginning_with(command, COMMANDS if command else ())
        elif command == "/set":
            yield from _beginning_with(rest, NAMES)
        elif command in _TAKE_A_FILE:
            yield from self._files.get_completions(Document(rest, len(rest)), complete_event)


def _beginning_with(begin: str, words: Iterable[str]) -> Completions:
    for word in words:
        if word.startswith(begin):
            yield Completion(word, start_position=-len(begin))


# --------------------------------------------------------------------- history
def default_history() -> Path:
    """Return the file that keeps what was typed in chats."""
    return Path(platformdirs.user_state_dir("haversack")) / "chat_history"


def _history(path: Path) -> History:
    """Return the history in a file that only its owner can read; one that is not kept where the
    file cannot be written."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))
    except OSError as error:
        notice(f"haversack: what you type is not kept: cannot write {path}: {error.strerror}")
        return InMemoryHistory()
    return FileHistory(path)
