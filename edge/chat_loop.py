"""The interactive chat: it reads lines, writes replies, and obeys commands that begin with a
slash."""

import importlib
import signal
import sys
from collections.abc import Callable, Generator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, fields, replace
from pathlib import Path
from types import FrameType
from typing import Any

from haversack.devices.errors import ContextError, HaversackError, PromptError, StorageError
from haversack.edge.chat_file import Turn
from haversack.edge.chat_session import load_chat, save_chat
from haversack.edge.console import drafting, notice, summary, tell, write_text
from haversack.edge.generation import Generation
from haversack.edge.given_text import longest_text_bytes
from haversack.edge.model import Model
from haversack.edge.option_groups import parsed_number
from haversack.edge.sampling import Sampling
from haversack.edge.text import without_mark

_QUOTES = '"""'
_PIECE_BYTES = 1 << 16  # of a line that is skipped
_END_BYTES = 64  # of a line that is skipped; kept, because quotes may stand there
_SWITCH = {"on": True, "off": False}
_PROMPT_SHARE = 0.75  # of the context; where a window leaves turns out, the rest is for the reply
_SHORT_NAMES = {"temp": "temperature", "n": "max_tokens"}
_NUMBERS = {field.name: field.type for field in fields(Sampling) if field.type in (int, float)}
_WHY = {
    "length": "stopped at the token limit; /set n NUMBER changes it",
    "context": "the context is full: /clear, /set window on, or start with a larger --ctx",
    "cancelled": "stopped",
}


@dataclass(frozen=True)
class ChatSettings:
    """How replies are made. `max_tokens` None means until the model ends or the context is full.
    `window` leaves out the oldest turns once the context is full. `chat_seed` is the seed of the
    model; the seeds of replies come from it, unless `sampling` has a seed for each of them."""

    sampling: Sampling
    system: str | None = None
    max_tokens: int | None = None
    window: bool = False
    chat_seed: int | None = None

    def changed(self, name: str, value: str) -> "ChatSettings":
        """Return the settings with one of them changed, named as its option is. Raises
        PromptError."""
        field = name.lstrip("-").replace("-", "_")
        field = _SHORT_NAMES.get(field, field)
        if field == "max_tokens":
            return replace(self, max_tokens=_parsed_limit(name, value))
        if field == "window":
            if value not in _SWITCH:
                raise PromptError(f"window is {value!r}: give on or off")
            return replace(self, window=_SWITCH[value])
        if field not in _NUMBERS:
            known = ", ".join([*_SHORT_NAMES, *_NUMBERS, "max_tokens", "window"])
            raise PromptError(f'no setting is called "{name}": give one of {known}')
        kind = int if _NUMBERS[field] is int else float
        setting: dict[str, Any] = {field: parsed_number(name, value, kind)}
        return replace(self, sampling=replace(self.sampling, **setting))

    def __str__(self) -> str:
        numbers = {name: getattr(self.sampling, name) for name in _NUMBERS}
        if self.sampling.seed < 0 and self.chat_seed is not None:
            numbers["seed"] = f"{self.chat_seed} (of the whole chat)"
        values = [f"{name} {value}" for name, value in numbers.items()]
        limit = "none" if self.max_tokens is None else self.max_tokens
        window = "on" if self.window else "off"
        return ", ".join([*values, f"max_tokens {limit}", f"window {window}"])


def _parsed_limit(name: str, value: str) -> int | None:
    """Return the most tokens of a reply, None where `value` is "none". Raises PromptError."""
    limit = None if value == "none" else parsed_number(name, value, int)
    if limit is not None and limit < 0:
        raise PromptError(f"{name} is {limit}: give 0 or more, or none")
    return limit


class Lines:
    """Reads messages that are typed or piped in: a line each, or several lines between triple
    quotes.

    A message that is too long for the context is read to its end and dropped, so that memory does
    not grow with it. Raises PromptError if stdin is closed.
    """

    def __init__(self, ctx_tokens: int) -> None:
        if sys.stdin is None:  # pyright: ignore[reportUnnecessaryComparison]
            raise PromptError("stdin is closed: a chat reads its messages there; see haversack run")
        self._ctx_tokens, self._most_bytes = ctx_tokens, longest_text_bytes(ctx_tokens)
        self._begun = self._overlong = False
        self.interactive = sys.stdin.isatty() and sys.stdout.isatty()
        if self.interactive:
            with suppress(ImportError):  # gives input() a history and editing keys
                importlib.import_module("readline")

    def read(self) -> str | None:
        """Return the next message; None when there are no more or Ctrl-C came twice. Raises
        StorageError if stdin cannot be read."""
        interrupted = False
        while True:
            try:
                return self._message()
            except EOFError:
                return None
            except UnicodeDecodeError as error:
                notice(f"haversack: this line is not UTF-8 text ({error.reason}): it is left out")
            except PromptError as error:
                notice(f"haversack: {error}")
            except OSError as error:
                raise StorageError(f"cannot read the chat from stdin: {error.strerror}") from error
            except KeyboardInterrupt:
                if not self.interactive:
                    raise
                write_text("\n")
                if interrupted:
                    return None
                interrupted = True
                notice("Ctrl-C again or Ctrl-D leaves the chat")

    def _message(self) -> str:
        """Return one message. Raises PromptError if it is too long, and what `_line` raises."""
        self._overlong = False
        message = self._line("> ").strip()
        if message.startswith(_QUOTES):
            message = self._quoted(message.removeprefix(_QUOTES))
        if self._overlong:
            raise PromptError(
                f"this message is longer than {self._most_bytes} bytes, more than a context of"
                f" {self._ctx_tokens} tokens can hold: shorten it, or start with a larger --ctx"
            )
        return message

    def _quoted(self, text: str) -> str:
        """Return the message that begins with `text` and ends with quotes, or where the input
        ends."""
        with suppress(EOFError):
            while not text.endswith(_QUOTES):
                if len(text) > self._most_bytes:
                    self._overlong, text = True, ""
                text += "\n" + self._line(". ")
        return text.removesuffix(_QUOTES).strip("\n")

    def _line(self, prompt: str) -> str:
        """Return one line without its end. Raises EOFError, OSError, UnicodeDecodeError."""
        if self.interactive:
            return input(prompt)
        data = sys.stdin.buffer.readline(self._most_bytes + 1)
        if not data:
            raise EOFError
        if len(data) > self._most_bytes and not data.endswith(b"\n"):
            line = self._ends_of_line(data)
        else:
            line = data.decode().rstrip("\r\n")
        first, self._begun = not self._begun, True
        return (
            without_mark(line) if first else line
        )  # or the first command would be taken for a message

    def _ends_of_line(self, begin: bytes) -> str:
        """Return both ends of a line that begins so and is too long, because quotes may stand
        there."""
        self._overlong = True
        end = piece = begin
        while piece and not piece.endswith(b"\n"):
            piece = sys.stdin.buffer.readline(_PIECE_BYTES)
            end = (end + piece)[-_END_BYTES:]
        return (begin[:_END_BYTES] + end).decode(errors="ignore").rstrip("\r\n")


class ChatLoop:
    """A conversation. A turn that fails leaves it unchanged."""

    def __init__(
        self, model: Model, settings: ChatSettings, lines: Lines, show_stats: bool
    ) -> None:
        self._model, self._settings, self._show_stats = model, settings, show_stats
        self._turns: list[Turn] = []
        self._last: str | None = None
        self._last_failed = False
        self._lines = lines
        self._commands: dict[str, Callable[[str], None]] = {
            "/help": self._help,
            "/clear": self._clear,
            "/system": self._system,
            "/set": self._set,
            "/regen": self._regenerate,
            "/undo": self._undo,
            "/save": self._save,
            "/load": self._load,
            "/stats": self._stats,
            "/plan": self._plan,
        }

    def run(self) -> None:
        """Answer one message after the other until the user leaves."""
        if self._lines.interactive:
            notice("/help shows the commands, Ctrl-D leaves")
        while (message := self._lines.read()) is not None:
            if message in ("/exit", "/bye"):
                return
            try:
                if message.startswith("/"):
                    self._obey(*message.partition(" ")[::2])
                elif message:
                    self._answer(message, self._turns)
            except HaversackError as error:
                notice(f"haversack: {error}")
            except KeyboardInterrupt:  # Ctrl-C came before or after the reply itself
                if not self._lines.interactive:
                    raise
                notice(f"({_WHY['cancelled']})")

    def _obey(self, command: str, text: str) -> None:
        if command not in self._commands:
            raise PromptError(f"{command} is no command: /help shows them")
        self._commands[command](text.strip())

    # ---------------------------------------------------------------- replies
    def _answer(self, message: str, turns: list[Turn]) -> None:
        """Answer `message` after `turns`. If that succeeds, the turns with the reply are the
        conversation."""
        self._last, self._last_failed = message, True
        generation, turns = self._reply_to(message, turns)
        reply = self._stream(generation)
        if reply or generation.finish_reason != "cancelled":
            self._turns = [*turns, (message, reply)]
            self._last_failed = False
        reason = _WHY.get(generation.finish_reason or "")
        if reason:
            notice(f"({reason})")
        if self._show_stats and generation.stats is not None:
            notice(f"({summary(generation.stats, len(generation.tokens))})")

    def _reply_to(self, message: str, turns: list[Turn]) -> tuple[Generation, list[Turn]]:
        """Return a generation of the reply, and the turns that its prompt contains. Raises
        ContextError."""
        ctx_tokens, num_turns = self._model.plan.shape.ctx_tokens, len(turns)
        while True:
            generation = self._model.chat(
                self._messages(turns, message), self._settings.max_tokens, self._settings.sampling
            )
            fits = generation.prompt_tokens <= ctx_tokens * _PROMPT_SHARE
            if fits or not turns or not self._settings.window:
                break
            turns = turns[1:]
        if (num_out := num_turns - len(turns)) > 0:
            oldest = "oldest turn is" if num_out == 1 else f"oldest {num_out} turns are"
            notice(f"(the context is full: the {oldest} left out)")
        if generation.prompt_tokens > ctx_tokens:
            raise _too_long(generation.prompt_tokens, ctx_tokens, alone=not turns)
        return generation, turns

    def _messages(self, turns: list[Turn], message: str) -> list[dict[str, str]]:
        system = self._settings.system
        messages = [] if system is None else [{"role": "system", "content": system}]
        for said, reply in turns:
            messages.append({"role": "user", "content": said})
            messages.append({"role": "assistant", "content": reply})
        return [*messages, {"role": "user", "content": message}]

    def _stream(self, generation: Generation) -> str:
        """Show the reply as it comes; return its text."""
        shown = False
        with closing(generation), self._cancelled_by_ctrl_c(generation):
            try:
                for piece in generation:
                    write_text(piece)
                    shown = True
            finally:
                if shown:
                    write_text("\n")
        return generation.text

    @contextmanager
    def _cancelled_by_ctrl_c(self, generation: Generation) -> Generator[None]:
        """Let Ctrl-C stop the reply and not the chat, inside the block and where stdin is a
        terminal."""
        if not self._lines.interactive:
            yield
            return

        def cancel(_: int, __: FrameType | None) -> None:
            generation.cancel()

        before = signal.getsignal(signal.SIGINT)
        try:
            signal.signal(signal.SIGINT, cancel)
            yield
        finally:
            signal.signal(signal.SIGINT, before)

    # --------------------------------------------------------------- commands
    def _help(self, _: str) -> None:
        for line in (
            "/system TEXT    what the model is told before the chat; - tells it nothing",
            "/clear          forget what was said",
            "/regen          answer the last message anew",
            "/undo           forget the last message and its reply",
            "/save FILE      write the chat and its KV cache; /load FILE goes on with them",
            "/set NAME VALUE change a setting: /set temp 0.2; alone: show all",
            "/set window on  leave out the oldest turns once the context is full",
            "/stats          tokens, speed, hits and bytes since the model was loaded",
            "/plan           how the memory is spent",
            "/exit           leave, as Ctrl-D does",
            '"""             begins and ends a message of several lines',
            "Ctrl-C          stops a reply; twice at the prompt leaves",
        ):
            tell(line)

    def _clear(self, _: str) -> None:
        self._turns, self._last = [], None
        notice("forgotten")

    def _system(self, text: str) -> None:
        if text:
            self._settings = replace(self._settings, system=None if text == "-" else text)
        notice(f"system: {self._settings.system or 'nothing'}")

    def _set(self, text: str) -> None:
        if text:
            name, _, value = text.partition(" ")
            self._settings = self._settings.changed(name, value.strip())
        notice(self._settings)

    def _regenerate(self, _: str) -> None:
        if self._last is None:
            raise PromptError("nothing was said yet: write a message first")
        self._answer(self._last, self._turns if self._last_failed else self._turns[:-1])

    def _undo(self, _: str) -> None:
        if not self._turns:
            raise PromptError("nothing was said yet: there is nothing to undo")
        (said, _), self._last = self._turns.pop(), None
        notice(f"forgotten: {said}")

    def _save(self, text: str) -> None:
        path = _file_of("/save", text)
        notice(save_chat(self._model, path, self._settings.system, self._turns))

    def _load(self, text: str) -> None:
        name = text.removeprefix("--words ").strip()
        path = _file_of("/load", name)
        kept, told = load_chat(self._model, path, words_alone=name != text)
        self._settings = replace(self._settings, system=kept.system)
        self._turns, self._last = list(kept.turns), None
        notice(told)

    def _stats(self, _: str) -> None:
        stats = self._model.stats()
        notice(summary(stats, stats.tokens))
        notice(drafting(stats))

    def _plan(self, _: str) -> None:
        tell(self._model.plan)


def _file_of(command: str, text: str) -> Path:
    if not text:
        raise PromptError(f"{command} lacks a file: give one, as in {command} chat.json")
    return Path(text).expanduser()


def _too_long(num_tokens: int, ctx_tokens: int, *, alone: bool) -> ContextError:
    """Return the error of a message that does not fit; `alone` says that no earlier turn was with
    it."""
    if alone:
        return ContextError(
            f"this message has {num_tokens} tokens with what stands around it, the context holds"
            f" {ctx_tokens}: shorten it, or start with a larger --ctx"
        )
    return ContextError(
        f"the chat has {num_tokens} tokens with this message, the context holds {ctx_tokens}:"
        " /clear forgets what was said, /set window on leaves out the oldest turns, and a larger"
        " --ctx at the start holds more"
    )
