"""The server's routes, and how it starts and ends."""

from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import cached_property

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from haversack.edge.server import openai
from haversack.edge.server.access import Access, AccessGate
from haversack.edge.server.answers import (
    ClientGoneError,
    answer,
    body_of,
    error_response,
    json_response,
)
from haversack.edge.server.errors import ApiError
from haversack.edge.server.fields import Fields
from haversack.edge.server.jobs import JobQueue
from haversack.edge.server.models import Load, ModelHost

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
            Route("/v1/models", self._models),
            Route("/v1/models/{name:path}", self._model),
            Route("/health", self._health),
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

        async def handler(request: Request) -> Response:
            try:
                body = await body_of(request, self.settings.access.body_bytes)
                return await handle(request, body)
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

    async def _models(self, _: Request) -> Response:
        listed = [_model_object(name) for name in self.host.names]
        return json_response({"object": "list", "data": listed})

    async def _model(self, request: Request) -> Response:
        return json_response(_model_object(self.host.name_of(request.path_params["name"])))

    # ------------------------------------------------------------------ state
    async def _health(self, _: Request) -> Response:
        if self.host.is_loading:
            return json_response({"status": "loading"}, 503, {"Retry-After": "1"})
        return json_response({"status": "ok"})


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
