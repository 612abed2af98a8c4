"""The options of `haversack serve`."""

import re
from dataclasses import dataclass
from math import inf
from pathlib import Path
from typing import Annotated

import typer

from haversack.devices.errors import PromptError
from haversack.edge import hub
from haversack.edge.loading import builtin_model
from haversack.edge.options import DraftOptions
from haversack.quant.gguf import PART_NAME

LOOPBACK = frozenset(["localhost", "127.0.0.1", "::1"])  # hosts that only this computer reaches
_MAX_PORT = 0xFFFF
# What browsers send: in small letters; "null" is that of a page from a file.
_ORIGIN = re.compile(r"[a-z][a-z0-9+.-]*://(\[[0-9a-f:.]+\]|[a-z0-9._-]+)(:[0-9]{1,5})?|null")


@dataclass(frozen=True)
class ServeOptions(DraftOptions):
    """Where a server listens, for whom, and how much it takes on. Raises PromptError."""

    also: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="FILE",
            help="Another model that requests may name; repeatable. One at a time is in memory.",
        ),
    ] = None
    host: Annotated[
        str, typer.Option(metavar="ADDRESS", help="Any but this computer's own needs --api-key.")
    ] = "127.0.0.1"
    port: Annotated[int, typer.Option(metavar="N", help="0: any that is free.")] = 4242
    api_key: Annotated[
        str | None,
        typer.Option(
            metavar="KEY", envvar="HAVERSACK_API_KEY", help="What requests must bring with them."
        ),
    ] = None
    origin: Annotated[
        list[str] | None,
        typer.Option(metavar="URL", help="A site whose pages may use the server; repeatable."),
    ] = None
    parallel: Annotated[
        int, typer.Option(metavar="N", help="Answers computed together, each with a context.")
    ] = 2
    queue: Annotated[
        int, typer.Option(metavar="N", help="Requests that wait at most; others get 503.")
    ] = 64
    keep_alive: Annotated[
        float, typer.Option(metavar="S", help="Seconds until an idle model is closed; -1: never.")
    ] = 300.0

    def __post_init__(self) -> None:
        super().__post_init__()
        for flag, value, least in (("--parallel", self.parallel, 1), ("--queue", self.queue, 0)):
            if value < least:
                raise PromptError(f"{flag} is {value}: give {least} or more")
        if not (self.keep_alive == -1 or 0 <= self.keep_alive < inf):
            raise PromptError(
                f"--keep-alive is {self.keep_alive:g}: give seconds, 0 or more, or -1 for never"
            )
        for origin in self.origin or ():
            if _ORIGIN.fullmatch(origin) is None:
                raise PromptError(
                    f"--origin is {origin!r}: give a site as a browser does, https://example.org or"
                    " http://example.org:8080, without a path"
                )
        if not 0 <= self.port <= _MAX_PORT:
            raise PromptError(f"--port is {self.port}: give 0 to {_MAX_PORT}")
        if self.host not in LOOPBACK and not self.api_key:
            raise PromptError(
                f"--host {self.host} can be reached from other computers: give --api-key KEY"
                " (or set HAVERSACK_API_KEY) too"
            )

    def paths(self, first: Path | None) -> dict[str, Path]:
        """Return the models by the names that requests give them. Raises PromptError."""
        paths = [first or builtin_model(), *(self.also or ())]
        named = {_name_of(path): path for path in paths}
        if len(named) < len(paths):
            raise PromptError("two models have the same file name: rename one")
        return named


def _name_of(model: Path) -> str:
    """Return a file's name without `.gguf` and the number of its part; a name on the hub whole."""
    if (name := hub.name_of(model)) is not None:
        return str(name)
    part = PART_NAME.fullmatch(model.name)
    return str(part[1]) if part else model.name.removesuffix(".gguf")
