"""Who may use the server, and what it does with requests that are wrong."""

import http.client
import json
import random
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import pytest

from haversack import edge
from haversack.edge.server.access import Access
from haversack.edge.server.app import Server, ServerSettings

NUM_MALFORMED = 1000
PATHS = (
    *("chat/completions", "completions", "responses", "embeddings"),
    *("messages", "messages/count_tokens"),
)
GOOD: dict[str, Any] = {
    "model": "tales-moe",
    "messages": [{"role": "user", "content": "Hi"}],
    "prompt": "Hi",
    "input": "Hi",
    "max_tokens": 1,
    "max_output_tokens": 1,
}
WRONG: list[Any] = [
    -1,
    1e308,
    10**4000,
    "",
    "\ud800",
    [],
    {},
    [[]],
    [None],
    True,
    "x" * 10000,
    [{}],
]
FIELDS = """
    model messages prompt input max_tokens temperature top_p stop tools tool_choice response_format
    seed logprobs stream text n stop_sequences max_output_tokens system instructions top_logprobs
    dimensions encoding_format
""".split()


def no_model() -> edge.Model:
    raise AssertionError("no request of these tests needs a model")


@pytest.fixture(scope="module")
def guarded(serving: Any) -> Iterator[httpx.Client]:
    """A server that wants a key."""
    access = Access(key="secret", origins=["https://chat.example"], body_bytes=10_000)
    server = Server({"tales-moe": no_model}, ServerSettings(access=access))
    with serving(server) as found, httpx.Client(base_url=found.url, timeout=300) as client:
        yield client


def test_a_key_is_needed_where_there_is_one(guarded: httpx.Client) -> None:
    assert guarded.get("/v1/models").status_code == 401
    assert guarded.get("/stats").status_code == 401
    wrong = [(b"Authorization", "Bearer secre\u00e9".encode("latin-1"))]
    assert guarded.get("/v1/models", headers=wrong).status_code == 401
    for given in ({"Authorization": "Bearer secret"}, {"x-api-key": "secret"}):
        assert guarded.get("/v1/models", headers=given).status_code == 200
    assert guarded.get("/health").json() == {"status": "ok"}
    assert guarded.get("/").status_code == 200


def test_other_sites_are_refused_but_those_that_are_named(guarded: httpx.Client) -> None:
    def asked(origin: str) -> httpx.Response:
        return guarded.get("/health", headers={"Origin": origin})

    for origin in ("https://evil.example", "null", "http://localhost.evil.example"):
        assert asked(origin).status_code == 403
    for origin in ("https://chat.example", "http://localhost:3000"):
        assert asked(origin).headers["Access-Control-Allow-Origin"] == origin
    preflight = guarded.options("/v1/models", headers={"Origin": "https://chat.example"})
    assert preflight.status_code == 204
    assert "POST" in preflight.headers["Access-Control-Allow-Methods"]


def test_a_name_of_another_site_does_not_reach_a_server_without_key(url: str) -> None:
    def status(host: str) -> int:
        return httpx.get(f"{url}/v1/models", headers={"Host": host}, timeout=300).status_code

    for host in ("evil.example", "", "localhost.evil.example:80", "[::1", "127.0.0.1:x"):
        assert status(host) in (400, 403)
    assert status("localhost:9") == 200


def test_large_bodies_are_refused(guarded: httpx.Client) -> None:
    key = {"x-api-key": "secret"}
    path = "/v1/chat/completions"
    assert guarded.post(path, content=b"x" * 10_001, headers=key).status_code == 413
    pieces = (b"x" * 5000 for _ in range(4))  # of a length that nobody tells
    assert guarded.post(path, content=pieces, headers=key).status_code == 413


def test_a_path_never_leads_to_a_file(url: str) -> None:
    for path in ("/../etc/passwd", "/..%2f..%2fetc/passwd", "/page.html", "/v1/models/..%2fx"):
        connection = http.client.HTTPConnection(url.removeprefix("http://"))
        connection.request("GET", path)
        assert connection.getresponse().status == 404
        connection.close()


def test_a_full_queue_says_when_to_try_again(serving: Any) -> None:
    server = Server({"tales-moe": no_model}, ServerSettings(parallel=0, queue=0))
    with serving(server) as found:
        refused = httpx.post(f"{found.url}/v1/chat/completions", json=GOOD, timeout=300)
    assert refused.status_code == 503
    assert int(refused.headers["Retry-After"]) >= 1
    assert refused.json()["error"]["type"] == "overloaded_error"


def malformed(draw: random.Random) -> tuple[str, bytes, dict[str, str]]:
    """A request with something wrong in it: a field, bytes of the body, or a header."""
    path, body = f"/v1/{draw.choice(PATHS)}", dict(GOOD)
    field = draw.choice(FIELDS)
    body[field] = draw.choice(WRONG)
    data = json.dumps(body).encode()
    match draw.randrange(6):
        case 0:
            place = draw.randrange(len(data))
            data = data[:place] + draw.randbytes(8) + data[place:]
        case 1:
            data = data[: draw.randrange(len(data))]
        case 2:
            data = draw.choice([b"[" * 100_000, b'{"a":' * 50_000, b"NaN", b"\xff\xfe", b"", b"{}"])
        case 3:
            data = data.replace(b"Hi", b"\\ud83d")
        case _:
            pass
    headers = {"Content-Type": draw.choice(["application/json", "text/\x7f", "", "a" * 5000])}
    return path, data, headers


def test_malformed_requests_are_refused_or_answered(url: str) -> None:
    draw = random.Random(16)
    with httpx.Client(base_url=url, timeout=300) as client:
        statuses = list[int]()
        for _ in range(NUM_MALFORMED):
            path, data, headers = malformed(draw)
            statuses.append(client.post(path, content=data, headers=headers).status_code)
        assert client.get("/health").json() == {"status": "ok"}
    # a wrong field that its protocol does not have is left alone, and the request is answered
    assert set(statuses) <= {200, 400, 404, 413, 422}
    assert statuses.count(400) > NUM_MALFORMED / 2


@pytest.mark.parametrize(
    "data",
    [
        b"\x16\x03\x01\x02\x00\x01\x00",
        b"GET\r\n\r\n",
        b"GET / HTTP/1.1\r\n" + b"a: b\r\n" * 20_000 + b"\r\n",
        b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: -1\r\n\r\n",
        b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 99999999999\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
        b"GET /\xff\xfe HTTP/1.1\r\nHost: localhost\r\n\r\n",
    ],
)
def test_what_is_no_http_is_refused(url: str, data: bytes) -> None:
    with connected(url, data) as connection:
        answer = connection.recv(1000)  # its first line comes whole
    assert answer.startswith((b"HTTP/1.1 4", b"HTTP/1.0 4")), answer


# ----------------------------------------------------------------- slow senders
BEGUN = b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\n{"


@contextmanager
def connected(url: str, data: bytes) -> Iterator[socket.socket]:
    host, port = url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=300) as connection:
        connection.sendall(data)
        yield connection


def test_a_body_that_does_not_come_is_refused_and_takes_no_place(serving: Any) -> None:
    server = Server({"tales-moe": no_model}, ServerSettings(access=Access(body_s=0.2)))
    with serving(server) as found, connected(found.url, BEGUN) as connection:
        assert httpx.get(f"{found.url}/stats", timeout=300).json()["queue"]["jobs"] == 0
        answer = b"".join(iter(lambda: connection.recv(1000), b""))  # until it is closed
        assert answer.startswith(b"HTTP/1.1 408") and b"request_timeout" in answer


@pytest.mark.parametrize("begun", [b"", b"GET /health HT"])
def test_a_head_that_does_not_come_ends_the_connection(serving: Any, begun: bytes) -> None:
    server = Server({"tales-moe": no_model}, ServerSettings(access=Access(head_s=0.2)))
    with serving(server) as found, connected(found.url, begun) as connection:
        assert connection.recv(1000) == b""
