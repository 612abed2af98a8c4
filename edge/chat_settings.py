"""How the replies of a chat are made, and the words by which its user changes that."""

from dataclasses import dataclass, fields, replace
from typing import Any

from haversack.devices.errors import PromptError
from haversack.edge.option_groups import parsed_number
from haversack.edge.sampling import WINDOW_FIRST_TOKENS, Sampling

COMMANDS = tuple(
    "/help /model /system /clear /regen /edit /undo /save /load /set /stats /plan /exit".split()
)
_SWITCH = {"on": True, "off": False}
_SHORT_NAMES = {"temp": "temperature", "n": "max_tokens"}
_NUMBERS = {field.name: field.type for field in fields(Sampling) if field.type in (int, float)}
_SWITCHES = ("window", "markdown")
NAMES = (*_SHORT_NAMES, *_NUMBERS, "max_tokens", *_SWITCHES)  # that /set takes


@dataclass(frozen=True)
class ChatSettings:
    """How replies are made. `max_tokens` None means until the model ends or the context is full.
    `window` forgets the oldest turns and tokens once the context is full, `markdown` shows replies
    as the document that their marks describe, on a terminal. `chat_seed` is the seed of the model;
    the seeds of replies come from it, unless `sampling` has a seed for each of them."""

    sampling: Sampling
    system: str | None = None
    max_tokens: int | None = None
    window: bool = False
    markdown: bool = True
    chat_seed: int | None = None

    @property
    def sampled(self) -> Sampling:
        """How tokens are chosen, and whether a reply goes on where the context is full."""
        windowed = self.window and not self.sampling.keep_first
        return replace(self.sampling, keep_first=WINDOW_FIRST_TOKENS) if windowed else self.sampling

    def changed(self, name: str, value: str) -> "ChatSettings":
        """Return the settings with one of them changed, named as its option is. Raises
        PromptError."""
        field = name.lstrip("-").replace("-", "_")
        field = _SHORT_NAMES.get(field, field)
        if field == "max_tokens":
            return replace(self, max_tokens=_parsed_limit(name, value))
        if field in _SWITCHES:
            if value not in _SWITCH:
                raise PromptError(f"{field} is {value!r}: give on or off")
            switched: dict[str, Any] = {field: _SWITCH[value]}
            return replace(self, **switched)
        if field not in _NUMBERS:
            known = ", ".join(NAMES)
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
        switches = [f"{name} {'on' if getattr(self, name) else 'off'}" for name in _SWITCHES]
        return ", ".join([*values, f"max_tokens {limit}", *switches])


def _parsed_limit(name: str, value: str) -> int | None:
    """Return the most tokens of a reply, None where `value` is "none". Raises PromptError."""
    limit = None if value == "none" else parsed_number(name, value, int)
    if limit is not None and limit < 0:
        raise PromptError(f"{name} is {limit}: give 0 or more, or none")
    return limit
