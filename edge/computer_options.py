"""Options about this computer, and the build of llama.cpp on it."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import typer

from haversack.devices._native import builds, chosen
from haversack.devices.errors import PromptError


@dataclass(frozen=True)
class BuildOptions:
    """Which build of llama.cpp computes. The program has set the environment variable before the
    imports that load it, see `edge.__main__`; here the option is shown and checked."""

    llama_build: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help=f"The build of llama.cpp that computes: {', '.join(builds.NAMES)}; the first"
            " that is installed unless given.",
            rich_help_panel="Memory and speed",
        ),
    ] = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        if self.llama_build not in (None, chosen.build.package):
            raise PromptError(
                f"--llama-build is {self.llama_build}, but {chosen.build.package} is loaded: set"
                f" {builds.VARIABLE} before the program starts"
            )


@dataclass(frozen=True)
class DoctorOptions(BuildOptions):
    """What is examined besides the computer."""

    model: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Measure the drive of this model, 16 MiB or more."),
    ] = None
    device: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="Measure this device too, as RPC\\[host:port]; repeatable. GPUs always are.",
        ),
    ] = None
