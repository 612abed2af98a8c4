"""Models are loaded when they are named, closed when idle, and given up by clients that go away."""

import http.client
import json
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx

from haversack import edge
from haversack.edge.server.app import Server, ServerSettings

DEADLINE_S = 300.0
ASKED: dict[str, Any] = {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 4}


def becomes(holds: Callable[[], bool]) -> bool:
    """Wait until it holds, for a long time at most."""
    end_s = time.monotonic() + DEADLINE_S
    while not holds() and time.monotonic() < end_s:
        time.sleep(0.01)
    return holds()


def builtin(trunk_dir: Path) -> edge.Model:
    options = edge.LoadOptions(cache_dir=trunk_dir)
    return edge.load(edge.builtin_model(), ram="2GiB", ctx=256, options=options)


def get(url: str) -> httpx.Response:
    return httpx.get(url, timeout=DEADLINE_S)


def ask(url: str, **others: Any) -> httpx.Response:
    return httpx.post(f"{url}/v1/chat/completions", json=ASKED | others, timeout=DEADLINE_S)


def test_models_take_turns_in_memory_and_leave_when_idle(serving: Any, trunk_dir: Path) -> None:
    loads = {name: lambda: builtin(trunk_dir) for name in ("one", "two")}
    with serving(Server(loads, ServerSettings(idle_s=0.0))) as found:
        host = found.server.host
        with ThreadPoolExecutor(6) as pool:
            asked = list(pool.map(lambda name: ask(found.url, model=name), ["one", "two"] * 3))
        assert [answer.json()["model"] for answer in asked] == ["one", "two"] * 3
        assert becomes(lambda: host.loaded is None)
        assert get(f"{found.url}/stats").json()["model"] is None
        assert "haversack_loaded 0.0" in get(f"{found.url}/metrics").text
        assert ask(found.url).json()["model"] == "one"


def test_a_model_that_does_not_fit_is_told(serving: Any) -> None:
    def load() -> edge.Model:
        return edge.load(edge.builtin_model(), ram="4MiB")

    with serving(Server({"big": load}, ServerSettings())) as found:
        refused = ask(found.url)
        assert refused.status_code == 503
        assert "raise --ram" in refused.json()["error"]["message"]
        assert get(f"{found.url}/health").status_code == 200


def test_a_client_that_goes_away_is_given_up_while_it_waits(serving: Any, trunk_dir: Path) -> None:
    begun, may_load = threading.Event(), threading.Event()

    def load() -> edge.Model:
        begun.set()
        assert may_load.wait(DEADLINE_S)
        return builtin(trunk_dir)

    with serving(Server({"slow": load}, ServerSettings())) as found:
        queue = found.server.queue
        connection = http.client.HTTPConnection(found.url.removeprefix("http://"))
        connection.request("POST", "/v1/chat/completions", json.dumps(ASKED))
        assert begun.wait(DEADLINE_S)
        assert get(f"{found.url}/health").status_code == 503  # it is being loaded
        connection.close()
        assert becomes(lambda: queue.num_cancelled == 1 and queue.num_jobs == 0)
        may_load.set()
        assert ask(found.url).status_code == 200


def test_a_client_that_goes_away_is_given_up_while_its_prompt_is_read(
    serving: Any, trunk_dir: Path
) -> None:
    """Three prompts wait for one sequence: the later ones are not computed once they are left."""
    with serving(Server({"one": lambda: builtin(trunk_dir)}, ServerSettings())) as found:
        queue = found.server.queue
        assert ask(found.url).status_code == 200
        computed = found.server.host.loaded.model.stats().prompt_tokens
        connections = list[http.client.HTTPConnection]()
        for number in range(3):
            text = f"{number} " + "fox " * 150
            body = ASKED | {"messages": [{"role": "user", "content": text}], "max_tokens": 200}
            connection = http.client.HTTPConnection(found.url.removeprefix("http://"))
            connection.request("POST", "/v1/chat/completions", json.dumps(body))
            connections.append(connection)
        assert becomes(lambda: queue.num_jobs == 3 or queue.num_answered > 1)
        for connection in connections:
            connection.close()
        assert becomes(lambda: queue.num_jobs == 0)
        assert ask(found.url).status_code == 200
        assert found.server.host.loaded.model.stats().prompt_tokens < computed + 3 * 400
