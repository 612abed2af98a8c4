"""The options of the commands that measure: bench and eval."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from haversack.devices.errors import PromptError
from haversack.edge.console import notice
from haversack.edge.picture import check_picture
from haversack.edge.simulated_gpu import simulated_gpu
from haversack.offload.simulated import SimulatedDevice

LLAMA_CPP = "llama.cpp"  # the engine that a benchmark can compare with
LEAST_EVAL_TOKENS = 256  # of a text; fewer say little of a fidelity
_SWEEP_PNG, _FIDELITY_PNG = Path("sweep.png"), Path("fidelity.png")


@dataclass(frozen=True)
class BenchOptions:
    """How much work is measured, and with which engine it is compared. Raises PromptError for less
    than one timed token of each kind, for an engine that is not known, for what a sweep does not
    do, and for a GPU that computes nothing where no routing is given."""

    prompt_tokens: Annotated[
        int,
        typer.Option("--prompt-tokens", "-p", metavar="N", help="Random tokens of the prompt."),
    ] = 512
    warm_tokens: Annotated[
        int,
        typer.Option(
            "--warm-tokens",
            metavar="N",
            help="Random tokens decoded then and not timed, while slots (or page cache) fill.",
        ),
    ] = 64
    tokens: Annotated[
        int,
        typer.Option(
            "--tokens",
            "--decode-tokens",
            "-n",
            metavar="N",
            help="Random tokens decoded after them, timed.",
        ),
    ] = 64
    seed: Annotated[int, typer.Option(metavar="N", help="Of the random tokens.")] = 0
    trace: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Force the routing recorded in this .npz, token after token, from its start again"
            " where it ends; nothing is prefetched then.",
        ),
    ] = None
    compare: Annotated[
        str | None,
        typer.Option(
            metavar="ENGINE",
            help=f"{LLAMA_CPP}: afterwards time it, plain, weights mapped and not repacked, on the"
            " same tokens and routing in a process of its own. --ram does not limit it: for that"
            " run the whole command in a control group.",
        ),
    ] = None

    simulate_gpu: Annotated[
        str | None,
        typer.Option(
            metavar="GPU",
            help="Measure beside a simulated GPU, as in vram=2GiB,link=12GB/s; docs/gpu.md has the"
            " rest.",
        ),
    ] = None
    sweep: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            help="Run in N budgets instead, from the least that works to all in memory, on tokens"
            " that the model writes after the prompt, and draw tokens a second against the budget.",
        ),
    ] = None
    png: Annotated[Path, typer.Option(metavar="FILE", help="The picture that --sweep draws.")] = (
        _SWEEP_PNG
    )

    def __post_init__(self) -> None:
        others = (
            ("--trace", self.trace),
            ("--compare", self.compare),
            ("--simulate-gpu", self.simulate_gpu),
        )
        for flag, given in others:
            if self.sweep is not None and given is not None:
                raise PromptError(f"--sweep and {flag} are given: give one of them")
        least = (
            ("-p", self.prompt_tokens, 1),
            ("--warm-tokens", self.warm_tokens, 0),
            ("-n", self.tokens, 1),
            ("--sweep", 2 if self.sweep is None else self.sweep, 2),
        )
        for flag, value, least_value in least:
            if value < least_value:
                raise PromptError(f"{flag} is {value}: give {least_value} or more")
        if self.sweep is not None:
            check_picture(self.png)
        elif self.png != _SWEEP_PNG:
            raise PromptError(f"--png is {self.png}, but only a sweep is drawn: give --sweep N too")
        if self.compare not in (None, LLAMA_CPP):
            raise PromptError(f"--compare is {self.compare!r}: give {LLAMA_CPP}")
        self._check_gpu()

    def _check_gpu(self) -> None:
        if self.simulate_gpu is None or simulated_gpu(self.simulate_gpu).processor.computes:
            return
        if self.trace is None:
            raise PromptError(
                "--simulate-gpu with memory= computes nothing, so routers would choose by zeros:"
                " give --trace FILE, or leave memory= out"
            )

    @contextmanager
    def simulated(self) -> Iterator[SimulatedDevice | None]:
        """Yield a device for the GPU to simulate, if one is asked for."""
        if self.simulate_gpu is None:
            yield None
            return
        gpu = simulated_gpu(self.simulate_gpu)
        with gpu.open() as device:
            notice(f"haversack: {device.name} is simulated, {gpu}: {gpu.note}")
            yield device

    @property
    def num_tokens(self) -> int:
        """How many tokens are computed in all."""
        return self.prompt_tokens + self.warm_tokens + self.tokens


@dataclass(frozen=True)
class EvalOptions:
    """On which text a fidelity is measured. Raises PromptError."""

    text: Annotated[
        Path | None, typer.Option(metavar="FILE", help="The text, in UTF-8; some thousand tokens.")
    ] = None
    tokens: Annotated[
        int,
        typer.Option(
            "--tokens",
            "-n",
            metavar="N",
            help="Tokens of it at most. The logits of exact for them wait in a file meanwhile.",
        ),
    ] = 2048
    all: Annotated[
        bool,
        typer.Option(
            "--all",
            help="Measure every fidelity and KV type, and draw bytes read against quality.",
        ),
    ] = False
    png: Annotated[Path, typer.Option(metavar="FILE", help="The picture that --all draws.")] = (
        _FIDELITY_PNG
    )

    def __post_init__(self) -> None:
        if self.tokens < LEAST_EVAL_TOKENS:
            raise PromptError(f"-n is {self.tokens}: give {LEAST_EVAL_TOKENS} or more")
        if self.text is None:
            raise PromptError("no text is given: give --text FILE")
        if self.all:
            check_picture(self.png)
        elif self.png != _FIDELITY_PNG:
            raise PromptError(f"--png is {self.png}, but one mode is not drawn: give --all too")
