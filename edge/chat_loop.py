"""The interactive chat: it answers messages, and obeys commands that begin with a slash."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from haversack.devices.errors import ContextError, HaversackError, PromptError
from haversack.edge.chat_file import Turn
from haversack.edge.chat_models import ChatModels
from haversack.edge.chat_reply import Reply, begin_reply
from haversack.edge.chat_session import load_chat, save_chat
from haversack.edge.chat_settings import ChatSettings
from haversack.edge.chat_talk import Talk
from haversack.edge.console import drafting, notice, summary, tell
from haversack.edge.model import Model

_PROMPT_SHARE = 0.75  # of the context; where a window leaves turns out, the rest is for the reply
_WHY = {
    "length": "stopped at the token limit; /set n NUMBER changes it",
    "context": "the context is full: /clear, /set window on, or start with a larger --ctx",
    "cancelled": "stopped",
}
_HELP = """\
/model NAME     go on with another model: a file, or a name on the hub; alone: which one it is
/system TEXT    what the model is told before the chat; - tells it nothing
/clear          forget what was said
/regen          answer the last message anew
/edit           change the last message and have it answered anew; /edit TEXT puts TEXT there
/undo           forget the last message and its reply
/save FILE      write the chat and its KV cache; /load FILE goes on with them
/set NAME VALUE change a setting: /set temp 0.2; alone: show all
/set window on  forget the oldest tokens once the context is full
/stats          tokens, speed, hits and bytes since the model was loaded
/plan           how the memory is spent
/exit           leave, as Ctrl-D does
\"""             begins and ends a message of several lines
Alt-Enter       begins a line; Ctrl-X Ctrl-E opens your editor
Ctrl-C          stops a reply; twice at the prompt leaves"""


class ChatLoop:
    """A conversation. A turn that fails leaves it unchanged."""

    def __init__(
        self, models: ChatModels, settings: ChatSettings, talk: Talk, show_stats: bool
    ) -> None:
        self._models, self._settings, self._show_stats = models, settings, show_stats
        self._turns: list[Turn] = []
        self._failed: str | None = None  # the last message, where it has no reply
        self._talk = talk
        self._edited: str | None = None  # the last message, while it is being changed
        self._commands: dict[str, Callable[[str], None]] = {
            "/help": self._help,
            "/model": self._change_model,
            "/clear": self._clear,
            "/system": self._system,
            "/set": self._set,
            "/regen": self._regenerate,
            "/edit": self._edit,
            "/undo": self._undo,
            "/save": self._save,
            "/load": self._load,
            "/stats": self._stats,
            "/plan": self._plan,
        }

    def run(self) -> None:
        """Answer one message after the other until the user leaves."""
        if self._talk.interactive:
            notice("/help shows the commands, Ctrl-D leaves")
        while (message := self._next_message()) is not None:
            if message in ("/exit", "/bye"):
                return
            edited, self._edited = self._edited, None
            try:
                if message.startswith("/"):
                    self._obey(*message.partition(" ")[::2])
                elif message:
                    self._answer(message, self._turns if edited is None else self._before_last())
            except HaversackError as error:
                notice(f"haversack: {error}")
            except KeyboardInterrupt:  # Ctrl-C came before or after the reply itself
                if not self._talk.interactive:
                    raise
                notice(f"({_WHY['cancelled']})")

    def _next_message(self) -> str | None:
        return self._talk.read(self._model.plan.shape.ctx_tokens, self._edited or "")

    @property
    def _model(self) -> Model:
        return self._models.model

    def _obey(self, command: str, text: str) -> None:
        if command not in self._commands:
            raise PromptError(f"{command} is no command: /help shows them")
        self._commands[command](text.strip())

    # ---------------------------------------------------------------- replies
    def _answer(self, message: str, turns: list[Turn]) -> None:
        """Answer `message` after `turns`. If that succeeds, the turns with the reply are the
        conversation."""
        self._failed = message
        reply, turns = self._reply_to(message, turns)
        self._talk.show(self._model, reply, self._settings)
        generation = reply.generation
        if reply.answer or generation.finish_reason != "cancelled":
            self._turns = [*turns, (message, reply.answer)]
            self._failed = None
        reason = _WHY.get(generation.finish_reason or "")
        if reason:
            notice(f"({reason})")
        if self._show_stats and generation.stats is not None:
            notice(f"({summary(generation.stats, len(generation.tokens))})")

    def _reply_to(self, message: str, turns: list[Turn]) -> tuple[Reply, list[Turn]]:
        """Return the reply, which begins when it is read, and the turns that its prompt contains.
        Raises ContextError."""
        ctx_tokens, num_turns = self._model.plan.shape.ctx_tokens, len(turns)
        while True:
            messages = self._messages(turns, message)
            settings = self._settings
            reply = begin_reply(self._model, messages, settings.max_tokens, settings.sampled)
            generation = reply.generation
            fits = generation.prompt_tokens <= ctx_tokens * _PROMPT_SHARE
            if fits or not turns or not self._settings.window:
                break
            turns = turns[1:]
        if (num_out := num_turns - len(turns)) > 0:
            oldest = "oldest turn is" if num_out == 1 else f"oldest {num_out} turns are"
            notice(f"(the context is full: the {oldest} left out)")
        if generation.prompt_tokens > ctx_tokens:
            raise _too_long(generation.prompt_tokens, ctx_tokens, alone=not turns)
        return reply, turns

    def _messages(self, turns: list[Turn], message: str) -> list[dict[str, str]]:
        system = self._settings.system
        messages = [] if system is None else [{"role": "system", "content": system}]
        for said, reply in turns:
            messages.append({"role": "user", "content": said})
            messages.append({"role": "assistant", "content": reply})
        return [*messages, {"role": "user", "content": message}]

    # --------------------------------------------------------------- commands
    def _help(self, _: str) -> None:
        tell(_HELP)

    def _change_model(self, text: str) -> None:
        if text:
            self._models.change(text)
        notice(f"model: {self._model.plan.path.name}")

    def _clear(self, _: str) -> None:
        self._turns, self._failed = [], None
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
        self._answer(self._last_message(), self._before_last())

    def _edit(self, text: str) -> None:
        said = self._last_message()
        if text:
            self._answer(text, self._before_last())
        elif self._talk.interactive:
            self._edited = said
        else:
            raise PromptError("/edit lacks a text: give the message as it should have been")

    def _last_message(self) -> str:
        if self._failed is not None:
            return self._failed
        if not self._turns:
            raise PromptError("nothing was said yet: write a message first")
        return self._turns[-1][0]

    def _before_last(self) -> list[Turn]:
        """Return the turns before the last message, which has no reply if that failed."""
        return self._turns[:-1] if self._failed is None else self._turns

    def _undo(self, _: str) -> None:
        if not self._turns:
            raise PromptError("nothing was said yet: there is nothing to undo")
        (said, _), self._failed = self._turns.pop(), None
        notice(f"forgotten: {said}")

    def _save(self, text: str) -> None:
        path = _file_of("/save", text)
        notice(save_chat(self._model, path, self._settings.system, self._turns))

    def _load(self, text: str) -> None:
        name = text.removeprefix("--words ").strip()
        path = _file_of("/load", name)
        kept, told = load_chat(self._model, path, words_alone=name != text)
        self._settings = replace(self._settings, system=kept.system)
        self._turns, self._failed = list(kept.turns), None
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
