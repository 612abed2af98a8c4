"""A job: a generation that runs in a thread of its model, and is read on the event loop."""

import asyncio
import time
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from haversack.devices.errors import CancelledError, ContextError
from haversack.edge.generation import Generation
from haversack.edge.logprobs import TokenLogprobs
from haversack.edge.model import Model
from haversack.edge.prompt import Prompt
from haversack.edge.replies import Piece, ReplyFormat, ReplyReader
from haversack.edge.server.chats import ChatPrompt
from haversack.edge.server.errors import busy, ending
from haversack.edge.server.models import ModelHost
from haversack.edge.tool_calls import ToolCall, read_tool_calls


@dataclass(frozen=True)
class Ask:
    """What a request wants of a model, whatever its protocol. `settings` are those of `Sampling`.

    The text of a prompt that is no chat's is not taken apart.
    """

    model: str | None
    prompt: Prompt | ChatPrompt
    max_tokens: int | None = None
    settings: Mapping[str, Any] = field(default_factory=dict[str, Any])

    def job(self, name: str) -> "Job":
        """Return the job that answers it with the model of that name."""
        return GenerationJob(name, self)


class Asking(Protocol):
    """What a request wants, as an `Ask`."""

    @property
    def model(self) -> str | None: ...

    def job(self, name: str) -> "Job": ...


@dataclass(frozen=True)
class Begin:
    """The generation begins: the prompt fits."""

    model: str
    prompt_tokens: int


@dataclass(frozen=True)
class TokenText:
    """A token's text and the logarithm of its probability, with those of the likeliest ones."""

    text: bytes
    logprob: float
    likeliest: Sequence[tuple[bytes, float]]


@dataclass(frozen=True)
class Logprobs:
    """Those of the tokens of the piece before."""

    tokens: Sequence[TokenText]


@dataclass(frozen=True)
class Embedded:
    """A text as a vector, (hidden,) float32."""

    vector: npt.NDArray[np.float32]


@dataclass(frozen=True)
class End:
    """Why the generation ended, as `Generation.finish_reason`, and the stop string if one came."""

    reason: str
    prompt_tokens: int
    num_tokens: int
    stop: str | None


Event = Begin | Piece | ToolCall | Logprobs | Embedded | End


class Job(ABC):
    """Something to be answered. `run` works in a thread and puts events; a reader takes them."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._loop = asyncio.get_running_loop()
        self._events = asyncio.Queue[Event | Exception]()
        self.has_started = False

    async def take(self) -> Event:
        """Return the next event. Raises the error with which the job ended."""
        event = await self._events.get()
        if isinstance(event, Exception):
            raise event
        return event

    def put(self, event: Event | Exception) -> None:
        self._loop.call_soon_threadsafe(self._events.put_nowait, event)

    def run(self, model: Model) -> None:
        """Answer. Errors are put as the last event."""
        self.has_started = True
        try:
            self._run(model)
        except Exception as error:
            self.put(error)

    @abstractmethod
    def cancel(self) -> None:
        """Have it end soon, also while its prompt is read."""

    @abstractmethod
    def _run(self, model: Model) -> None:
        """Put the events of the answer, the last of which is `End`."""


class GenerationJob(Job):
    """Goes on from a prompt."""

    def __init__(self, name: str, ask: Ask) -> None:
        super().__init__(name)
        self._ask = ask
        self._generation: Generation | None = None
        self._cancelled = False

    def cancel(self) -> None:
        self._cancelled = True
        if self._generation is not None:
            self._generation.cancel()

    def _run(self, model: Model) -> None:
        prompt, format, settings = self._read(model)
        ask, parameters = self._ask, dict[str, Any]()
        if isinstance(ask.prompt, ChatPrompt):
            parameters = ask.prompt.parameters
        generation = self._generation = model.generate(prompt, ask.max_tokens, **settings)
        with closing(generation):
            if self._cancelled:
                raise CancelledError("the client went away")
            ctx_tokens = model.plan.shape.ctx_tokens
            if generation.prompt_tokens > ctx_tokens:
                raise ContextError(
                    f"the prompt has {generation.prompt_tokens} tokens, the context holds"
                    f" {ctx_tokens}: shorten it or raise --ctx"
                )
            self.put(Begin(self._name, generation.prompt_tokens))
            if isinstance(ask.prompt, ChatPrompt) and ask.prompt.forced:
                self._put_forced(generation, parameters)
            else:
                shown = prompt if isinstance(prompt, str) else ""
                self._put_pieces(generation, ReplyReader(format, shown, parameters), model)
            reason, count = generation.finish_reason or "stop", len(generation.tokens)
            self.put(End(reason, generation.prompt_tokens, count, generation.stopped_by))

    def _read(self, model: Model) -> tuple[Prompt, ReplyFormat, dict[str, Any]]:
        """The prompt, how its reply is taken apart, and the settings."""
        ask, settings = self._ask, dict(self._ask.settings)
        if not isinstance(ask.prompt, ChatPrompt):
            return ask.prompt, ReplyFormat(), settings
        template = model.chat_template()
        schema = ask.prompt.forced_schema()
        if schema is not None:
            settings["json_schema"] = schema
        prompt, format = ask.prompt.render(template), ask.prompt.format(template)
        if settings.get("json_schema") is not None:  # the text has no room for marks
            return prompt, ReplyFormat(), settings
        return prompt, format, settings | {"marks": format.marks}

    def _put_pieces(self, generation: Generation, reader: ReplyReader, model: Model) -> None:
        num_told = 0
        for text in generation:
            for part in reader.push(text):
                self.put(part)
            new = generation.logprobs[num_told:]
            num_told += len(new)
            if new:
                self.put(Logprobs([_with_text(each, model) for each in new]))
        for part in reader.finish():
            self.put(part)

    def _put_forced(self, generation: Generation, parameters: Mapping[str, Any]) -> None:
        calls = read_tool_calls(generation.text, parameters)
        if not calls:  # it was cut short
            self.put(Piece(generation.text))
        for call in calls:
            self.put(call)


def _with_text(found: TokenLogprobs, model: Model) -> TokenText:
    likeliest = [(model.piece(token), logprob) for token, logprob in found.likeliest]
    return TokenText(model.piece(found.token), found.logprob, likeliest)


class JobQueue:
    """Starts jobs, and refuses them once `most_jobs` run or wait."""

    def __init__(self, host: ModelHost, most_jobs: int) -> None:
        self.host, self.most_jobs = host, most_jobs
        self.num_jobs = self.num_answered = self.num_refused = self.num_cancelled = 0
        self._usual_s = 1.0  # what an answer takes, a running mean
        self._tasks = set[asyncio.Task[None]]()
        self._jobs = set[Job]()  # that somebody reads
        self._is_ending = False

    async def events(self, ask: Asking) -> AsyncGenerator[Event]:
        """Answer a request: the events until `End`. Whoever leaves earlier cancels it. Raises
        ApiError, and the errors of the model."""
        name = self.host.name_of(ask.model)
        if self._is_ending:
            raise ending()
        if self.num_jobs >= self.most_jobs:
            self.num_refused += 1
            raise busy(
                f"{self.num_jobs} requests run or wait already: try again later",
                max(1, round(self._usual_s)),
            )
        job = ask.job(name)
        self.num_jobs += 1
        task = asyncio.ensure_future(self._do(job, name))  # ends by itself when this is left
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        self._jobs.add(job)
        is_over = False
        try:
            while not is_over:
                event = await job.take()
                is_over = isinstance(event, End)
                yield event
        except (GeneratorExit, asyncio.CancelledError):
            self.num_cancelled += not task.done() and not is_over
            raise
        finally:
            self._jobs.discard(job)
            if not task.done() and not is_over:
                job.cancel()
                if not job.has_started:
                    task.cancel()

    def end(self) -> None:
        """Answer no more: whoever reads a job gets ApiError, which cancels it."""
        self._is_ending = True
        for job in self._jobs:
            job.put(ending())

    async def _do(self, job: Job, name: str) -> None:
        began_s = time.monotonic()
        try:
            async with self.host.using(name) as loaded:
                loop = asyncio.get_running_loop()
                await loop.run_in_executor(loaded.threads, job.run, loaded.model)
                self.num_answered += 1
                self._usual_s += (time.monotonic() - began_s - self._usual_s) / 8
        except Exception as error:  # the model could not be loaded
            job.put(error)
        finally:
            self.num_jobs -= 1
