"""Who may use the server: hosts, origins, the key, and the size of a request."""

import hmac
from collections.abc import Collection
from dataclasses import dataclass
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from haversack.edge.server.answers import error_response
from haversack.edge.server.errors import ApiError
from haversack.edge.server.options import LOOPBACK

_OPEN_PATHS = frozenset(["/", "/health"])  # need no key: they show nothing of models or texts


@dataclass(frozen=True)
class Access:
    """The rules. Without a `key`, only requests that name a loopback host are taken, so that no
    page of another site can reach the server through a name that it controls. `origins` are other
    sites whose pages may use the server. A request's head must be there `head_s` seconds after its
    connection or its first byte, its body `body_s` seconds later."""

    key: str | None = None
    origins: Collection[str] = ()
    body_bytes: int = 8 << 20
    head_s: float = 20.0
    body_s: float = 120.0

    def check(self, path: str, headers: Headers) -> None:
        """Raises ApiError."""
        host = _host_of(f"//{headers.get('host', '')}")
        if self.key is None and host not in LOOPBACK:
            raise ApiError(403, "host_refused", f"the host {host!r} is not served: use localhost")
        origin = headers.get("origin")
        if origin is not None and not self.allows_origin(origin):
            raise ApiError(
                403, "origin_refused", f"pages of {origin!r} are refused: serve --origin"
            )
        length = headers.get("content-length", "0")
        if not length.isdecimal() or int(length[:20]) > self.body_bytes:
            raise self.too_large()
        if self.key is not None and path not in _OPEN_PATHS and not self._has_key(headers):
            raise ApiError(401, "invalid_api_key", "the API key is missing or wrong")

    def too_large(self) -> ApiError:
        return ApiError(413, "request_too_large", f"a body has at most {self.body_bytes} bytes")

    def allows_origin(self, origin: str) -> bool:
        return origin in self.origins or (
            origin.startswith(("http://", "https://")) and _host_of(origin) in LOOPBACK
        )

    def _has_key(self, headers: Headers) -> bool:
        assert self.key is not None
        given = headers.get("authorization", "").removeprefix("Bearer ")
        given = given or headers.get("x-api-key", "")
        return hmac.compare_digest(given.encode(), self.key.encode())


def _host_of(address: str) -> str | None:
    """The host's name in an address, None if it is none."""
    try:
        parts = urlsplit(address)
        parts.port  # noqa: B018  # raises where it is no number
    except ValueError:
        return None
    return parts.hostname


class AccessGate:
    """The ASGI layer in front of the application that applies the rules."""

    def __init__(self, app: ASGIApp, access: Access) -> None:
        self._app, self._access = app, access

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers, path = Headers(scope=scope), str(scope["path"])
        origin = headers.get("origin")
        try:
            preflight = scope["method"] == "OPTIONS" and origin is not None
            self._access.check("/" if preflight else path, headers)
        except ApiError as error:
            await error_response(error, path)(scope, receive, send)
            return

        async def send_with_origin(message: Message) -> None:
            if origin is not None and message["type"] == "http.response.start":
                allowed = MutableHeaders(scope=message)
                allowed["Access-Control-Allow-Origin"] = origin
                allowed.add_vary_header("Origin")
            await send(message)

        app: ASGIApp = _preflight(headers) if preflight else self._app
        await app(scope, receive, send_with_origin)


def _preflight(headers: Headers) -> Response:
    asked = headers.get("access-control-request-headers", "")
    allowed = {
        "Access-Control-Allow-Methods": "GET, POST",
        "Access-Control-Allow-Headers": asked,
        "Access-Control-Max-Age": "600",
    }
    return Response(status_code=204, headers=allowed)
