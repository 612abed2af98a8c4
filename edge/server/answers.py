"""Answers: JSON, errors, and streams of events that end when the client goes away."""

import asyncio
import json
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine, Mapping
from typing import Any, Protocol, TypeVar

from sse_starlette import EventSourceResponse, ServerSentEvent
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from haversack.edge.server.errors import ApiError, anthropic_error, api_error, openai_error
from haversack.edge.server.fields import Fields, parsed_body
from haversack.edge.server.jobs import Event

Result = TypeVar("Result")

_FIRST_EVENT_S = 5.0  # until then an error can still be told by the status
_PING_S = 15
_LAST_EVENT_S = 1.0  # for the event that says that the server ends
_log = logging.getLogger("haversack.server")


class ClientGoneError(Exception):
    """The client went away before it had an answer."""


class Writer(Protocol):
    """Writes an answer as a protocol wants it, event by event or whole."""

    def write(self, event: Event) -> list[ServerSentEvent]:
        """Return what is sent for an event."""
        ...

    def whole(self) -> Mapping[str, Any]:
        """Return the answer after all events were written."""
        ...


def encoded(value: object) -> bytes:
    """JSON; what is no Unicode text is replaced."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    return text.encode(errors="replace")


def server_event(value: object, event: str | None = None) -> ServerSentEvent:
    return ServerSentEvent(encoded(value).decode(), event=event, sep="\n")


def json_response(value: object, status: int = 200, headers: Any = None) -> Response:
    return Response(encoded(value), status, headers, "application/json")


def error_response(error: Exception, path: str) -> Response:
    """The answer to a request that fails, in the shape of the path's protocol."""
    refused = api_error(error)
    if refused.status == 500:
        _log.error("%s failed", path, exc_info=error)
    return json_response(_shape(path)(refused), refused.status, dict(refused.headers))


def _shape(path: str) -> Callable[[ApiError], dict[str, object]]:
    return anthropic_error if path.startswith("/v1/messages") else openai_error


async def body_of(request: Request, most_bytes: int, most_s: float) -> Fields:
    """The body of a request, which must be there in `most_s` seconds. Raises ApiError,
    ClientGoneError."""
    try:
        return parsed_body(await asyncio.wait_for(_whole_body(request, most_bytes), most_s))
    except asyncio.TimeoutError:
        told = f"the body was not there after {most_s:g} seconds: send it faster"
        raise ApiError(408, "request_timeout", told, {"Connection": "close"}) from None
    except ClientDisconnect:
        raise ClientGoneError from None


async def _whole_body(request: Request, most_bytes: int) -> bytes:
    data = bytearray()
    async for piece in request.stream():
        data += piece
        if len(data) > most_bytes:
            raise ApiError(413, "request_too_large", f"a body has at most {most_bytes} bytes")
    return bytes(data)


async def answer(
    request: Request, events: AsyncGenerator[Event], writer: Writer, stream: bool
) -> Response:
    """Answer with what the `writer` makes of the events. The events are left when the client goes
    away. Raises what they raise before anything was sent, ClientGoneError."""
    if not stream:
        await while_connected(request, _write_all(events, writer))
        return json_response(writer.whole())
    first = asyncio.ensure_future(anext(events))
    try:
        await while_connected(request, _wait(first))
    except BaseException:
        first.cancel()
        raise
    path = request.url.path
    return EventSourceResponse(
        _sent(first, events, writer, path),
        ping=_PING_S,
        sep="\n",
        shutdown_grace_period=_LAST_EVENT_S,
    )


async def _write_all(events: AsyncGenerator[Event], writer: Writer) -> None:
    try:
        async for event in events:
            writer.write(event)
    finally:
        await events.aclose()


async def _wait(first: "asyncio.Future[Event]") -> None:
    done, _ = await asyncio.wait([first], timeout=_FIRST_EVENT_S)
    if done:
        first.result()


async def _sent(
    first: "asyncio.Future[Event]", events: AsyncGenerator[Event], writer: Writer, path: str
) -> AsyncIterator[ServerSentEvent]:
    try:
        for sent in writer.write(await first):
            yield sent
        async for event in events:
            for sent in writer.write(event):
                yield sent
    except Exception as error:
        told = _shape(path)(api_error(error))
        yield server_event(told, "error" if path.startswith("/v1/messages") else None)
    finally:
        if first.done():
            await events.aclose()
        first.cancel()  # which ends the events too


async def while_connected(request: Request, work: Coroutine[Any, Any, Result]) -> Result:
    """Return what `work` returns; it is cancelled when the client goes away, which raises
    ClientGoneError."""
    task, gone = asyncio.ensure_future(work), asyncio.ensure_future(_gone(request))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        raise ClientGoneError
    finally:
        gone.cancel()
        task.cancel()


async def _gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
