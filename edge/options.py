"""The options of the command line, in groups: a frozen dataclass each, one field an option.

`takes` makes a command of a function of such groups, so that commands which share options share
their names, defaults and help, and no function has twenty arguments.
"""

import inspect
import random
import sys
from collections.abc import Callable
from dataclasses import MISSING, dataclass, fields
from functools import partial
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import typer

from haversack.devices.errors import PromptError
from haversack.edge.model import builtin_model, default_cache_dir
from haversack.edge.planner import DEFAULT_BATCH_TOKENS, Plan, plan
from haversack.edge.sampling import MAX_SEED, Sampling

_memory = partial(typer.Option, rich_help_panel="Memory and speed")
_sampling = partial(typer.Option, rich_help_panel="Sampling")


def takes(*groups: type[Any]) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Make a command of a function: it gets one object of each group, filled from the options."""

    def command_of(function: Callable[..., None]) -> Callable[..., None]:
        def command(**given: Any) -> None:
            function(*(group(**{f.name: given[f.name] for f in fields(group)}) for group in groups))

        hints = {
            name: hint
            for group in groups
            for name, hint in get_type_hints(group, include_extras=True).items()
        }
        parameters = [
            inspect.Parameter(
                field.name,
                inspect.Parameter.KEYWORD_ONLY,
                default=inspect.Parameter.empty if field.default is MISSING else field.default,
                annotation=hints[field.name],
            )
            for group in groups
            for field in fields(group)
        ]
        command.__doc__ = function.__doc__
        command.__annotations__ = hints
        setattr(command, "__signature__", inspect.Signature(parameters))  # noqa: B010
        return command

    return command_of


@dataclass(frozen=True)
class ModelOptions:
    """Which model, and what it may take."""

    model: Annotated[
        Path | None,
        typer.Argument(
            help="A GGUF file, or any part of a split one.", show_default="the built-in model"
        ),
    ] = None
    ram: Annotated[
        str | None,
        _memory(
            metavar="SIZE",
            help="The most memory to take, as in 6GiB; without it, what is free less 2 GiB.",
        ),
    ] = None
    ctx: Annotated[
        int | None,
        _memory("--ctx", "-c", help="Tokens of context; at most 4096 unless given."),
    ] = None
    threads: Annotated[
        int | None,
        _memory("--threads", "-t", help="Threads; the physical cores unless given."),
    ] = None
    batch: Annotated[int, _memory(help="Prompt tokens computed at once.")] = DEFAULT_BATCH_TOKENS

    @property
    def path(self) -> Path:
        return self.model or builtin_model()

    def plan(self) -> Plan:
        """How the model would run. Raises what `edge.plan` raises."""
        return plan(self.path, self.ram, self.ctx, self.threads, self.batch)


@dataclass(frozen=True)
class CacheOptions:
    """Where trunk files lie."""

    cache_dir: Annotated[
        Path | None,
        _memory(help="Folder of the trunk files; the user's cache unless given."),
    ] = None

    @property
    def folder(self) -> Path:
        return self.cache_dir or default_cache_dir()


@dataclass(frozen=True)
class SamplingOptions:
    """How the next token is chosen."""

    temp: Annotated[float, _sampling(help="Temperature; 0 is greedy.")] = Sampling.temperature
    seed: Annotated[int, _sampling(help="Equal seeds give equal text; -1: any.")] = Sampling.seed
    top_k: Annotated[int, _sampling(help="Only the K likeliest; 0: off.")] = Sampling.top_k
    top_p: Annotated[
        float,
        _sampling(help="Only the likeliest, P in sum; 1: off."),
    ] = Sampling.top_p
    min_p: Annotated[
        float,
        _sampling(help="Only those above P times the likeliest; 0: off."),
    ] = Sampling.min_p
    repeat_penalty: Annotated[float, _sampling(help="Above 1: repeat less.")] = (
        Sampling.repeat_penalty
    )
    stop: Annotated[
        list[str] | None,
        _sampling(metavar="TEXT", help="End before this text; repeatable."),
    ] = None
    grammar: Annotated[
        Path | None,
        _sampling(metavar="FILE", help="A GBNF grammar the text follows."),
    ] = None
    json_schema: Annotated[
        str | None,
        _sampling(metavar="FILE_or_JSON", help="A JSON Schema the text follows."),
    ] = None

    def sampling(self) -> Sampling:
        """The settings, files read. Raises PromptError."""
        return Sampling(
            temperature=self.temp,
            top_k=self.top_k,
            top_p=self.top_p,
            min_p=self.min_p,
            repeat_penalty=self.repeat_penalty,
            seed=self.seed,
            stop=tuple(checked_text("--stop", text) for text in self.stop or ()),
            grammar=None if self.grammar is None else _file_text("--grammar", self.grammar),
            json_schema=self._schema(),
        )

    def _schema(self) -> str | None:
        if self.json_schema is None or self.json_schema.lstrip().startswith("{"):
            return self.json_schema
        return _file_text("--json-schema", Path(self.json_schema))

    def chosen_seed(self) -> int:
        """The seed given, or a random one."""
        return self.seed if self.seed >= 0 else random.randint(0, MAX_SEED)


@dataclass(frozen=True)
class RunOptions:
    """What to continue, and how far."""

    prompt: Annotated[
        str | None,
        typer.Option(
            "--prompt", "-p", metavar="TEXT", help="The text to go on from; - reads stdin."
        ),
    ] = None
    max_tokens: Annotated[
        int | None,
        typer.Option(
            "--max-tokens",
            "-n",
            metavar="N",
            help="Tokens to generate at most; else until the model ends or the context is full.",
        ),
    ] = None

    def text(self) -> str:
        """The prompt, read from stdin if it comes from there. Raises PromptError."""
        if self.prompt is not None and self.prompt != "-":
            return checked_text("--prompt", self.prompt)
        if self.prompt is None and sys.stdin.isatty():
            raise PromptError("no prompt: give -p TEXT, or pipe the text in")
        return decoded("stdin", sys.stdin.buffer.read()).removesuffix("\n")


@dataclass(frozen=True)
class ChatOptions:
    """How a chat begins, and how long its replies may be."""

    system: Annotated[
        str | None, typer.Option(metavar="TEXT", help="What the model is told before the chat.")
    ] = None
    max_tokens: Annotated[
        int | None,
        typer.Option("--max-tokens", "-n", metavar="N", help="Tokens of a reply at most."),
    ] = None


@dataclass(frozen=True)
class BenchOptions:
    """How much work is measured."""

    prompt_tokens: Annotated[
        int, typer.Option("--prompt-tokens", "-p", min=1, help="Random tokens of the prompt.")
    ] = 512
    decode_tokens: Annotated[
        int, typer.Option("--decode-tokens", "-n", min=1, help="Random tokens decoded after it.")
    ] = 64
    seed: Annotated[int, typer.Option(help="Of the random tokens.")] = 0


@dataclass(frozen=True)
class OutputOptions:
    """What is told, and in which form."""

    json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object on stdout, nothing else.")
    ] = False


@dataclass(frozen=True)
class LogOptions:
    """What is told besides."""

    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Show the log on stderr.")] = (
        False
    )


# ----------------------------------------------------------------------- text
def checked_text(flag: str, text: str) -> str:
    """`text` as it is. Raises PromptError if the shell passed bytes that are no UTF-8."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise PromptError(f"{flag} is not UTF-8 text: {text!r}; check its encoding") from None
    return text


def decoded(source: str, data: bytes) -> str:
    """The text that `data` is in UTF-8. Raises PromptError."""
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise PromptError(
            f"{source} is not UTF-8 text (byte {data[error.start]:#x} at {error.start}): convert it"
        ) from None


def _file_text(flag: str, path: Path) -> str:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise PromptError(f"cannot read {flag} {path}: {error.strerror or error}") from error
    return decoded(f"{flag} {path}", data)
