"""The options of the command line that say how near to exact a model is computed."""

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from haversack.edge.fidelity import MODES, Fidelity
from haversack.edge.model_plan import EXACT, Plan
from haversack.edge.options import CacheOptions, ModelOptions
from haversack.edge.planner import with_drafts
from haversack.edge.speculate import AUTO, Asked, asked_for
from haversack.quant.gguf import ModelGeometry

_memory = partial(typer.Option, rich_help_panel="Memory and speed")
_AUTO = asked_for(AUTO)


@dataclass(frozen=True)
class FidelityOptions(CacheOptions):
    """How near to exact a model is computed where its experts are streamed, and where its trunk and
    low copies lie."""

    fidelity: Annotated[
        str,
        _memory(
            metavar="MODE",
            help=f"{', '.join(MODES)}: the last two read low copies of experts that matter little,"
            " or nothing. They need `haversack prepare` or --low-from.",
        ),
    ] = EXACT
    low_from: Annotated[
        Path | None,
        _memory(metavar="FILE", help="Low copies are the experts of this smaller GGUF of MODEL."),
    ] = None
    low_share: Annotated[
        float | None,
        _memory(metavar="X", help="Share of uses that may be low copies, in place of the mode's."),
    ] = None
    skip_share: Annotated[
        float | None,
        _memory(metavar="X", help="Share of uses that may be left out, in place of the mode's."),
    ] = None

    route_bias: Annotated[
        float,
        _memory(
            metavar="X",
            help="Routers choose among experts of nearly equal score those in memory: an expert in"
            " a slot counts as better by X (0 to 1) of the range of a token's scores.",
        ),
    ] = 0.0

    def asked(self) -> Fidelity:
        """Return what is asked for. Raises PromptError."""
        return Fidelity(
            self.fidelity, self.low_from, self.low_share, self.skip_share, self.route_bias
        )

    def plan(
        self,
        model: ModelOptions,
        geometry: ModelGeometry | None = None,
        sequences: int = 1,
        drafts: Asked = _AUTO,
    ) -> Plan:
        """Plan how the model would run. Raises what `edge.plan`, `with_drafts` and
        `Fidelity.applied` raise."""
        asked = self.asked()  # before anything is read
        planned = model.plan(geometry, sequences)
        asked_of = drafts.draft_from, drafts.is_off, drafts.most_bytes, drafts.learns
        planned = with_drafts(planned, *asked_of)
        return asked.applied(planned, self.folder)
