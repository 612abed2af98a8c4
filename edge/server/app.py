"""The server's routes, and how it starts and ends."""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from functools import cached_property
from importlib.resources import files

from prometheus_client import CONTENT_TYPE_LATEST
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from haversack.devices.errors import ClosedError
from haversack.edge.server import anthropic, openai, responses
from haversack.edge.server.access import Access, AccessGate
from haversack.edge.server.answers import (
    ClientGoneError,
    answer,
    body_of,
    error_response,
    json_response,
)
from haversack.edge.server.embeddings import EmbeddingsWriter, read_embeddings, read_encoding
from haversack.edge.server.errors import ApiError, ending
from haversack.edge.server.fields import Fields
from haversack.edge.server.jobs import JobQueue
from haversack.edge.server.models import Load, ModelHost
from haversack.edge.server.status import metrics_of, model_figures, queue_figures

_PAGE = (files("haversack.edge.server") / "page.html").read_bytes()
_PAGE_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; connect-src 'self'; img-src data:;"
    " script-src 'unsafe-inline'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none';"
    " frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
}

Handler = Callable[[Request], Awaitable[Response]]


@dataclass(frozen=True)
class ServerSettings:
    """How many requests run and wait, how long an unused model stays, and who may ask."""

    parallel: int = 1
    queue: int = 64
    idle_s: float | None = 300.0
    access: Access = field(default_factory=Access)


class Server:
    """The application, as `app`, and what its routes share."""

    def __init__(self, loads: Mapping[str, Load], settings: ServerSettings) -> None:
        self.settings = settings
        self._loads = loads

    @cached_property
    def host(self) -> ModelHost:
        return ModelHost(self._loads, self.settings.idle_s)

    @cached_property
    def queue(self) -> JobQueue:
        return JobQueue(self.host, self.settings.parallel + self.settings.queue)

    @cached_property
    def app(self) -> Starlette:
        routes = [
            Route("/v1/chat/completions", self._posted(self._chat), methods=["POST"]),
            Route("/v1/completions", self._posted(self._completion), methods=["POST"]),
            Route("/v1/embeddings", self._posted(self._embeddings), methods=["POST"]),
            Route("/v1/responses", self._posted(self._response), methods=["POST"]),
            Route("/v1/messages", self._posted(self._message), methods=["POST"]),
            Route("/v1/messages/count_tokens", self._posted(self._count), methods=["POST"]),
            Route("/v1/models", self._models),
            Route("/v1/models/{name:path}", self._model),
            Route("/health", self._health),
            Route("/metrics", self._metrics),
            Route("/stats", self._stats),
            Route("/", self._page),
        ]
        handlers = {ApiError: _refused, HTTPException: _unknown, ClientGoneError: _gone}
        gate = Middleware(AccessGate, access=self.settings.access)
        return Starlette(
            routes=routes, middleware=[gate], exception_handlers=handlers, lifespan=self._life
        )

    @asynccontextmanager
    async def _life(self, _: Starlette) -> AsyncGenerator[None]:
        yield
        await self.host.close()

    def _posted(self, handle: Callable[[Request, Fields], Awaitable[Response]]) -> Handler:
        """A handler that is given the body."""

        access = self.settings.access

        async def handler(request: Request) -> Response:
            try:
                body = await body_of(request, access.body_bytes, access.body_s)
                return await handle(request, body)
            except asyncio.CancelledError:  # the server's grace is over
                return error_response(ending(), request.url.path)
            except Exception as error:
                if isinstance(error, ClientGoneError):
                    raise
                return error_response(error, request.url.path)

        return handler

    # ----------------------------------------------------------------- OpenAI
    async def _chat(self, request: Request, body: Fields) -> Response:
        ask, stream = openai.read_chat(body), body.flag("stream")
        writer = openai.ChatWriter(_wants_usage(body))
        return await answer(request, self.queue.events(ask), writer, stream)

    async def _completion(self, request: Request, body: Fields) -> Response:
        ask, stream = openai.read_completion(body), body.flag("stream")
        echo = ask.prompt if body.flag("echo") and isinstance(ask.prompt, str) else ""
        writer = openai.CompletionWriter(_wants_usage(body), echo)
        return await answer(request, self.queue.events(ask), writer, stream)

    async def _embeddings(self, request: Request, body: Fields) -> Response:
        ask, writer = read_embeddings(body), EmbeddingsWriter(read_encoding(body))
        return await answer(request, self.queue.events(ask), writer, stream=False)

    async def _response(self, request: Request, body: Fields) -> Response:
        ask, stream = responses.read_response(body), body.flag("stream")
        return await answer(request, self.queue.events(ask), responses.ResponseWriter(), stream)

    # -------------------------------------------------------------- Anthropic
    async def _message(self, request: Request, body: Fields) -> Response:
        ask, stream = anthropic.read_messages(body), body.flag("stream")
        return await answer(request, self.queue.events(ask), anthropic.MessageWriter(), stream)

    async def _count(self, _: Request, body: Fields) -> Response:
        ask = anthropic.read_messages(body, counting=True)
        async with self.host.using(self.host.name_of(ask.model)) as loaded:
            return json_response(await asyncio.to_thread(anthropic.count_tokens, loaded.model, ask))

    # ------------------------------------------------------------------ state
    async def _models(self, _: Request) -> Response:
        listed = [_model_object(name) for name in self.host.names]
        return json_response({"object": "list", "data": listed})

    async def _model(self, request: Request) -> Response:
        return json_response(_model_object(self.host.name_of(request.path_params["name"])))

    async def _health(self, _: Request) -> Response:
        if self.host.is_loading:
            return json_response({"status": "loading"}, 503, {"Retry-After": "1"})
        return json_response({"status": "ok"})

    async def _metrics(self, _: Request) -> Response:
        return Response(metrics_of(self.queue), media_type=CONTENT_TYPE_LATEST)

    async def _stats(self, request: Request) -> Response:
        figures: dict[str, object] = {"queue": queue_figures(self.queue), "model": None}
        loaded = self.host.loaded
        if loaded is not None:
            with_experts = "experts" in request.query_params
            with suppress(ClosedError):  # it is being closed now
                told = await asyncio.to_thread(model_figures, loaded.model, with_experts)
                figures["model"] = {"name": loaded.name, **told}
        return json_response(figures)

    async def _page(self, _: Request) -> Response:
        return Response(_PAGE, headers=_PAGE_HEADERS, media_type="text/html")


def _wants_usage(body: Fields) -> bool:
    options = body.object("stream_options")
    return options is not None and options.flag("include_usage")


def _model_object(name: str) -> dict[str, object]:
    return {"id": name, "object": "model", "created": 0, "owned_by": "haversack"}


async def _refused(request: Request, error: Exception) -> Response:
    return error_response(error, request.url.path)


async def _unknown(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    code = {404: "not_found", 405: "method_not_allowed"}.get(error.status_code, "bad_request")
    told = ApiError(error.status_code, code, f"{request.method} {request.url.path}: {error.detail}")
    return error_response(told, request.url.path)


async def _gone(_: Request, __: Exception) -> Response:
    return Response(status_code=499)
