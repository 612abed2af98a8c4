"""Options of the command line in groups: each group is a frozen dataclass with a field for each
option.

`takes` makes a command of a function whose arguments are groups. So commands that share options
share their names, defaults and help, and no function has twenty arguments.
"""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_args, get_origin, get_type_hints

from typer.models import ArgumentInfo

from haversack.devices.errors import PromptError
from haversack.edge.given_text import given_path

_Number = TypeVar("_Number", int, float)
_Parser = Callable[[str, str], Any]  # of what the option is called, and the text given


def takes(*groups: type[Any]) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Make a command of a function: it gets one object of each group, filled from the options."""

    def command_of(function: Callable[..., None]) -> Callable[..., None]:
        options = {group: _options_of(group) for group in groups}

        def command(**given: Any) -> None:
            function(*(_filled(group, options[group], given) for group in groups))

        parameters = [option.parameter() for group in groups for option in options[group]]
        command.__doc__ = function.__doc__
        setattr(command, "__signature__", inspect.Signature(parameters))  # noqa: B010
        command.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
        return command

    return command_of


@dataclass(frozen=True)
class _Option:
    """One field of a group. Numbers and paths are parsed here: typer's error does not say what it
    found in place of a number, and a Path of its does not say what was typed."""

    name: str
    kind: Any
    default: Any
    info: Any

    @property
    def called(self) -> str:
        """What people call it: MODEL, or --ram."""
        if isinstance(self.info, ArgumentInfo):
            return str(self.info.metavar)
        return "--" + self.name.replace("_", "-")

    @property
    def is_list(self) -> bool:
        return any(get_origin(kind) is list for kind in get_args(self.kind))

    @property
    def parser(self) -> _Parser | None:
        """What parses the field's text, or each one of a list; None if it stays as it is."""
        kinds = get_args(self.kind) or (self.kind,)
        kinds = get_args(kinds[0]) if self.is_list else kinds
        return next((_PARSERS[kind] for kind in kinds if kind in _PARSERS), None)

    def parameter(self) -> inspect.Parameter:
        """Return the parameter that typer sees."""
        kind, default = self.kind, self.default
        if default is MISSING:
            default = inspect.Parameter.empty  # typer then demands a value
        elif self.parser is not None:
            kind = list[str] | None if self.is_list else str | None
            default = None if default is None else str(default)
        return inspect.Parameter(
            self.name,
            inspect.Parameter.KEYWORD_ONLY,
            default=default,
            annotation=Annotated[kind, self.info],
        )

    def parsed(self, value: Any) -> Any:
        """Return the field's value. Raises PromptError for a text that is none."""
        parser = self.parser
        if parser is None or value is None:
            return value
        if self.is_list:
            return [parser(self.called, text) for text in value]
        return parser(self.called, value)


def _options_of(group: type[Any]) -> list[_Option]:
    hints = get_type_hints(group, include_extras=True)
    options: list[_Option] = []
    # What a group inherits as a keyword comes last, in the help too.
    for field in sorted(fields(group), key=lambda field: field.kw_only is True):
        kind, info = get_args(hints[field.name])
        options.append(_Option(field.name, kind, field.default, info))
    return options


def _filled(group: type[Any], options: list[_Option], given: dict[str, Any]) -> Any:
    return group(**{option.name: option.parsed(given[option.name]) for option in options})


def parsed_number(name: str, text: str, kind: type[_Number]) -> _Number:
    """Return `text` as an int or float. Raises PromptError, which names the setting."""
    try:
        return kind(text)
    except ValueError:
        wanted = "a whole number" if kind is int else "a number"
        raise PromptError(f"{name} is {text!r}: give {wanted}") from None


_PARSERS: Mapping[Any, _Parser] = {
    int: lambda name, text: parsed_number(name, text, int),
    float: lambda name, text: parsed_number(name, text, float),
    Path: given_path,
}
