"""The groups of options of the command line."""

import random
import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from haversack.devices.errors import PromptError
from haversack.devices.llama import EXACT_KV_TYPE, KV_TYPES
from haversack.edge.cache_dir import default_cache_dir
from haversack.edge.computer_options import BuildOptions
from haversack.edge.context_shape import DEFAULT_BATCH_TOKENS
from haversack.edge.gbnf import MAX_GRAMMAR_CHARS
from haversack.edge.given_text import (
    checked_text,
    decoded,
    file_text,
    given_path,
    longest_text_bytes,
    read_at_most,
)
from haversack.edge.hub import HubName, cached, local_path, name_of
from haversack.edge.loading import LoadOptions, builtin_model
from haversack.edge.model_plan import Plan
from haversack.edge.placement import FREE
from haversack.edge.planner import plan
from haversack.edge.sampling import MAX_SEED, Sampling
from haversack.edge.schema import MAX_SCHEMA_CHARS
from haversack.edge.speculate import AUTO as SPECULATE_AUTO
from haversack.edge.speculate import Asked, asked_for
from haversack.edge.text import without_mark
from haversack.edge.trunk_plan import AUTO_TRUNK
from haversack.quant.gguf import ModelGeometry
from haversack.quant.requantize import AUTO

_WINDOW_HELP = (
    "Go on where the context is full, from the first tokens and the recent half of the others."
)
_memory = partial(typer.Option, rich_help_panel="Memory and speed")
_sampling = partial(typer.Option, rich_help_panel="Sampling")


@dataclass(frozen=True)
class ModelOptions(BuildOptions):
    """Which model, and the memory and threads it may take."""

    model: Annotated[
        Path | None,
        typer.Argument(
            metavar="MODEL",
            help="A GGUF file, any part of a split one, or a name on the Hugging Face hub:"
            " org/repo, org/repo:QUANT or org/repo/file.gguf.",
            show_default="the built-in model",
        ),
    ] = None
    ram: Annotated[
        str | None,
        _memory(
            metavar="SIZE",
            help="The most memory to take, as in 6GiB; without it, what is free less 2 GiB; auto:"
            " this too, and less while other programs need it.",
        ),
    ] = None
    vram: Annotated[
        list[str] | None,
        _memory(
            metavar="SIZE",
            help="The most memory to take of the GPU, as in 6GiB; of a device, as in CUDA0=6GiB or"
            " RPC\\[host:port]=6GiB, repeatable; auto: what is free on each GPU less 1 GiB. Experts"
            " lie there. `haversack doctor` lists devices.",
        ),
    ] = None
    placement: Annotated[
        str,
        _memory(
            metavar="HOW",
            help="Which experts lie on devices: free (those that are used most, they move as the"
            " text changes) or fixed (always the same ones, so that runs repeat).",
        ),
    ] = FREE
    trunk: Annotated[
        str,
        _memory(
            metavar="WHERE",
            help="Where the last layers lie, with their KV cache, as many as fit: auto (a GPU of"
            " this computer), device (the first of --vram) or host.",
        ),
    ] = AUTO_TRUNK
    ctx: Annotated[
        int | None,
        _memory("--ctx", "-c", metavar="N", help="Tokens of context; at most 4096 unless given."),
    ] = None
    threads: Annotated[
        int | None,
        _memory("--threads", "-t", metavar="N", help="Threads; the usable cores unless given."),
    ] = None
    batch: Annotated[int, _memory(metavar="N", help="Prompt tokens computed at once.")] = (
        DEFAULT_BATCH_TOKENS
    )
    kv_type: Annotated[
        str,
        _memory(
            metavar="TYPE",
            help=f"Block type of the KV cache: {', '.join(KV_TYPES)}. The last two take about half"
            " and a quarter of the first, and are not exact; eval measures what that costs.",
        ),
    ] = EXACT_KV_TYPE

    @property
    def path(self) -> Path:
        """The model's file; one of the hub is downloaded first. Raises ModelFileError."""
        return local_path(self.model or builtin_model())

    @property
    def remote_name(self) -> HubName | None:
        """The name of a model of the hub that is not in its cache; None for any other model."""
        name = None if self.model is None else name_of(self.model)
        return None if name is None or cached(name) else name

    def plan(self, geometry: ModelGeometry | None = None, sequences: int = 1) -> Plan:
        """Plan how the model, or one of this geometry, would run. Raises what `edge.plan`
        raises."""
        source = geometry or self.path
        return plan(
            source,
            self.ram,
            self.ctx,
            self.threads,
            vram=self.vram,
            placement=self.placement,
            trunk=self.trunk,
            batch=self.batch,
            sequences=sequences,
            kv_type=self.kv_type,
        )


@dataclass(frozen=True)
class CacheOptions:
    """Where trunk files and low copies lie."""

    cache_dir: Annotated[
        Path | None,
        _memory(
            metavar="FOLDER",
            help="Folder of trunk files and low copies; the user's cache unless given.",
        ),
    ] = None

    @property
    def folder(self) -> Path:
        return self.cache_dir or default_cache_dir()

    def load_options(self) -> LoadOptions:
        """Return options of a load that say what these options say."""
        return LoadOptions(cache_dir=self.folder)


@dataclass(frozen=True)
class DraftOptions:
    """Whether tokens are drafted. Raises PromptError for what is not known."""

    speculate: Annotated[
        str,
        _memory(
            metavar="WHEN",
            help="Draft tokens and compute them together: auto (where that is faster), off, ngram"
            " (always, up to 6), ngram:N (up to N), or a model of any vocabulary, in GGUF or ONNX,"
            " that drafts where that is faster. MODEL.gguf+learn has it learn from the texts. The"
            " text stays the same; beside a model that drafts, give a seed for that.",
        ),
    ] = SPECULATE_AUTO
    speculate_memory: Annotated[
        str | None,
        _memory(
            metavar="SIZE",
            help="The most memory that all that drafts may take, a GGUF included; what does not fit"
            " is made smaller. It comes out of --ram.",
        ),
    ] = None

    def __post_init__(self) -> None:
        self.asked_drafts()

    def asked_drafts(self) -> Asked:
        """Return how to draft. Raises PromptError, UnitError."""
        return asked_for(self.speculate, self.speculate_memory)


@dataclass(frozen=True)
class SamplingOptions:
    """How the next token is chosen."""

    temp: Annotated[float, _sampling(metavar="X", help="Temperature; 0 is greedy.")] = (
        Sampling.temperature
    )
    seed: Annotated[int, _sampling(metavar="N", help="Equal seeds give equal text; -1: any.")] = (
        Sampling.seed
    )
    top_k: Annotated[int, _sampling(metavar="K", help="Only the K likeliest; 0: off.")] = (
        Sampling.top_k
    )
    top_p: Annotated[
        float,
        _sampling(metavar="P", help="Only the likeliest, P in sum; 1: off."),
    ] = Sampling.top_p
    min_p: Annotated[
        float,
        _sampling(metavar="P", help="Only those above P times the likeliest; 0: off."),
    ] = Sampling.min_p
    repeat_penalty: Annotated[float, _sampling(metavar="X", help="Above 1: repeat less.")] = (
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
        """Return the settings, with the content of files. Raises PromptError."""
        return Sampling(
            temperature=self.temp,
            top_k=self.top_k,
            top_p=self.top_p,
            min_p=self.min_p,
            repeat_penalty=self.repeat_penalty,
            seed=self.seed,
            stop=tuple(checked_text("--stop", text) for text in self.stop or ()),
            grammar=self._gbnf(),
            json_schema=self._schema(),
        )

    def _gbnf(self) -> str | None:
        if self.grammar is None:
            return None
        return file_text("--grammar", self.grammar, MAX_GRAMMAR_CHARS)

    def _schema(self) -> str | None:
        if self.json_schema is None or without_mark(self.json_schema).lstrip().startswith("{"):
            return self.json_schema
        path = given_path("--json-schema", self.json_schema)
        return file_text("--json-schema", path, MAX_SCHEMA_CHARS)

    def chosen_seed(self) -> int:
        """Return the seed given, or a random one."""
        return self.seed if self.seed >= 0 else random.randint(0, MAX_SEED)


@dataclass(frozen=True)
class RunOptions(DraftOptions):
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
    window: Annotated[bool, typer.Option("--window", help=_WINDOW_HELP)] = False

    def text(self, ctx_tokens: int) -> str:
        """Return the prompt; read it from stdin if none was given. Of a prompt that is too long for
        the context, only as much is read as shows that. Raises PromptError."""
        if self.prompt is not None and self.prompt != "-":
            return checked_text("--prompt", self.prompt)
        if sys.stdin is None:  # pyright: ignore[reportUnnecessaryComparison]
            raise PromptError("no prompt: stdin is closed; give -p TEXT")
        if self.prompt is None and sys.stdin.isatty():
            raise PromptError("no prompt: give -p TEXT, or pipe the text in")
        most_bytes = longest_text_bytes(ctx_tokens)
        try:
            data = read_at_most(sys.stdin.buffer, most_bytes + 1)
        except OSError as error:
            raise PromptError(
                f"cannot read the prompt from stdin: {error.strerror}; give -p TEXT"
            ) from error
        if len(data) > most_bytes:
            raise PromptError(
                f"the prompt on stdin is longer than {most_bytes} bytes, more than a context of"
                f" {ctx_tokens} tokens can hold: shorten it or raise --ctx"
            )
        return decoded("stdin", data).removesuffix("\n")


@dataclass(frozen=True)
class ChatOptions(DraftOptions):
    """How a chat begins, and how long its replies may be."""

    system: Annotated[
        str | None, typer.Option(metavar="TEXT", help="What the model is told before the chat.")
    ] = None
    max_tokens: Annotated[
        int | None,
        typer.Option("--max-tokens", "-n", metavar="N", help="Tokens of a reply at most."),
    ] = None
    window: Annotated[
        bool,
        typer.Option("--window", help=f"{_WINDOW_HELP} A message leaves out the oldest turns."),
    ] = False


@dataclass(frozen=True)
class LowOptions:
    """Which low copies of a model's experts are made."""

    low: Annotated[
        str,
        typer.Option(
            metavar="TYPE",
            help="Block type of the copies, as q2_k, q3_k, iq2_xxs, iq3_xxs (those whose names"
            " begin with iq1 or iq2_x need --imatrix or --calibrate); auto: the best that takes"
            " about half of the bytes; nested: the upper bits of the original, with the lower ones"
            " beside them.",
        ),
    ] = AUTO
    imatrix: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Weight the columns by this imatrix file of llama.cpp."),
    ] = None
    calibrate: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Weight the columns by what the model computes on the text in this file, and fit"
            " balanced and fast to the model's routers.",
        ),
    ] = None


@dataclass(frozen=True)
class NameOptions:
    """A model of the Hugging Face hub. Raises PromptError for anything else."""

    name: Annotated[
        str,
        typer.Argument(metavar="NAME", help="org/repo, org/repo:QUANT or org/repo/file.gguf."),
    ]

    @property
    def hub_name(self) -> HubName:
        name = name_of(self.name)
        if name is None:
            raise PromptError(
                f"{self.name!r} is no name on the hub: give org/repo or org/repo:QUANT"
            )
        return name


@dataclass(frozen=True)
class OutputOptions:
    """What is printed, and in which form."""

    json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object on stdout, nothing else.")
    ] = False


@dataclass(frozen=True)
class LogOptions:
    """What is printed besides."""

    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Show the log on stderr.")] = (
        False
    )
