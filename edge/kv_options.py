"""Options of what is kept on disk beside a model."""

from dataclasses import dataclass, replace
from typing import Annotated

import typer

from haversack.devices.units import size_bytes
from haversack.edge.fidelity_options import FidelityOptions
from haversack.edge.loading import LoadOptions


@dataclass(frozen=True)
class KeepingOptions(FidelityOptions):
    """How near to exact a model is computed, and what is kept of its texts. Raises UnitError."""

    kv_disk: Annotated[
        str | None,
        typer.Option(
            metavar="SIZE",
            help="Keep the KV cache of texts that leave memory on disk, in the cache folder, up to"
            " this size, as in 10GiB: a prompt that begins with one of them begins from there.",
            rich_help_panel="Memory and speed",
        ),
    ] = None

    def __post_init__(self) -> None:
        if self.kv_disk is not None:
            size_bytes(self.kv_disk)

    def load_options(self) -> LoadOptions:
        return replace(super().load_options(), kv_disk=self.kv_disk)


@dataclass(frozen=True)
class ClearOptions:
    """What happens to the files of the cache."""

    clear: Annotated[
        bool,
        typer.Option(
            "--clear",
            help="Remove all of it: a load writes the trunks again, `prepare` the low copies.",
        ),
    ] = False
