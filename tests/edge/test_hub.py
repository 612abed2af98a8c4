"""Models by name, with the real client of the Hugging Face hub and a small hub on this computer."""

import hashlib
import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from haversack.devices.errors import ModelFileError
from haversack.edge.given_text import given_path
from haversack.edge.hub import HubFile, HubName, choose, name_of

REPO = "tester/tiny-GGUF"


# ----------------------------------------------------------------------- names
@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("org/repo", HubName("org/repo")),
        ("org/repo-GGUF:Q4_K_M", HubName("org/repo-GGUF", quant="Q4_K_M")),
        ("org/repo/model.gguf", HubName("org/repo", "model.gguf")),
        ("org/repo/Q8_0/model-00001-of-00002.gguf", HubName(
            "org/repo", "Q8_0/model-00001-of-00002.gguf")),
        ("model.gguf", None),
        ("folder/model.gguf", None),
        ("/org/repo", None),
        ("../org/repo", None),
        ("org/repo:", None),
        ("https://huggingface.co/org/repo", None),
    ],
)  # fmt: skip
def test_names(text: str, name: HubName | None) -> None:
    assert name_of(text) == name == name_of(Path(text))
    assert name is None or str(name) == text


@pytest.mark.parametrize("text", ["./org/repo/model.gguf", "../org/repo.gguf", "~/org/model.gguf"])
def test_what_begins_as_a_path_is_a_path(text: str) -> None:
    assert name_of(text) is None
    assert name_of(given_path("MODEL", text)) is None


def test_what_is_there_is_a_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "org/repo").mkdir(parents=True)
    for path in ("org/repo", "org/repo/missing.gguf"):  # the second one is a slip of the pen
        assert name_of(path) is None


def files(*names: str) -> list[HubFile]:
    return [HubFile(name, 1) for name in names]


MANY = files(
    "README.md", "m-Q4_K_M.gguf", "m-Q4_K_S.gguf", "m-IQ4_XS.gguf", "mmproj-m-f16.gguf",
    "Q8_0/m-Q8_0-00001-of-00002.gguf", "Q8_0/m-Q8_0-00002-of-00002.gguf",
    "m-F16-00001-of-00003.gguf",
)  # fmt: skip


@pytest.mark.parametrize(
    ("name", "chosen"),
    [
        (HubName("o/r"), ["m-Q4_K_M.gguf"]),
        (HubName("o/r", quant="q4_k_s"), ["m-Q4_K_S.gguf"]),
        (HubName("o/r", quant="IQ4_XS"), ["m-IQ4_XS.gguf"]),
        (HubName("o/r", quant="Q8_0"), [
            "Q8_0/m-Q8_0-00001-of-00002.gguf", "Q8_0/m-Q8_0-00002-of-00002.gguf"]),
        (HubName("o/r", "m-Q4_K_S.gguf"), ["m-Q4_K_S.gguf"]),
    ],
)  # fmt: skip
def test_a_name_means_one_model(name: HubName, chosen: list[str]) -> None:
    assert [file.path for file in choose(name, MANY[::-1])] == chosen


@pytest.mark.parametrize(
    ("name", "given", "said"),
    [
        (
            HubName("o/r", quant="Q4"),
            MANY,
            "o/r:Q4 is no model: o/r has .*m-Q4_K_M.*give o/r:QUANT",
        ),
        (HubName("o/r", quant="F16"), MANY, "no model"),  # parts are missing
        (HubName("o/r"), files("a-Q8_0.gguf", "b-Q8_0.gguf"), "no model: o/r has a-Q8_0, b-Q8_0"),
        (HubName("o/r", quant="Q8_0"), files("a-Q8_0.gguf", "b-Q8_0.gguf"), "is 2 models"),
        (HubName("o/r"), files("model.safetensors"), "no whole GGUF model"),
    ],
)
def test_other_names_are_told_the_choices(name: HubName, given: list[HubFile], said: str) -> None:
    with pytest.raises(ModelFileError, match=said):
        choose(name, given)


# ------------------------------------------------------------------------- hub
class Hub(ThreadingHTTPServer):
    """Serves files of one repository as huggingface.co does; counts the bytes it sent."""

    def __init__(self, found: dict[str, Path]) -> None:
        super().__init__(("127.0.0.1", 0), _Request)
        self.found, self.sent_bytes = found, 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class _Request(BaseHTTPRequestHandler):
    @property
    def hub(self) -> Hub:
        assert isinstance(self.server, Hub)
        return self.server

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        found = self.hub.found
        if path == f"/api/models/{REPO}":
            listed = [{"rfilename": name, "size": found[name].stat().st_size} for name in found]
            info = json.dumps({"id": REPO, "siblings": listed})
            return self._answer(info.encode(), {"Content-Type": "application/json"})
        if path == "/api/models/tester/login":
            return self._answer(b"<html>Log in to this network</html>", {})
        name = path.removeprefix(f"/{REPO}/resolve/main/")
        if name not in found:
            self.send_response(404)
            self.send_header(
                "X-Error-Code", "RepoNotFound" if REPO not in path else "EntryNotFound"
            )
            self.send_header("Content-Length", "0")
            return self.end_headers()
        data = found[name].read_bytes()
        etag = hashlib.sha256(data).hexdigest()
        return self._answer(data, {"ETag": f'"{etag}"', "X-Repo-Commit": "1" * 40})

    def _answer(self, data: bytes, headers: dict[str, str]) -> None:
        asked, part = self.headers.get("Range"), data
        if asked:
            start, _, end = asked.removeprefix("bytes=").partition("-")
            part = data[int(start) : int(end) + 1 if end else None]
            headers = {"Content-Range": f"bytes {start}-/{len(data)}", **headers}
        self.send_response(206 if asked else 200)
        for key, value in {**headers, "Content-Length": str(len(part))}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command == "GET":
            self.hub.sent_bytes += len(part)
            self.wfile.write(part)

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture
def hub(tiny_model: Callable[..., Path]) -> Iterator[Hub]:
    names = {"tiny-Q8_0.gguf": "Q8_0", "tiny-Q4_K_M.gguf": "Q4_K"}
    server = Hub({name: tiny_model(expert_type=kind) for name, kind in names.items()})
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


Haversack = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def haversack(hub: Hub, tmp_path: Path) -> Haversack:
    """A function that runs the command line with a cache of its own."""
    env = {
        **{key: value for key, value in os.environ.items() if not key.startswith("HF_")},
        "HF_ENDPOINT": hub.url,
        "HF_HOME": str(tmp_path / "hf"),
        "XDG_CACHE_HOME": str(tmp_path / "cache"),
        "HF_HUB_DISABLE_XET": "1",
    }

    def run(*arguments: str, **more: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "haversack.edge", *arguments]
        return subprocess.run(
            command, env={**env, **more}, capture_output=True, text=True, timeout=300
        )

    return run


@pytest.mark.slow
def test_a_model_is_planned_pulled_run_and_removed(hub: Hub, haversack: Haversack) -> None:
    planned = haversack("plan", f"{REPO}:Q4_K_M", "--ram", "1GiB", "--json")
    assert planned.returncode == 0, planned.stderr
    assert f"{REPO}:Q4_K_M is not downloaded yet" in planned.stderr
    assert haversack("ls").stdout.startswith("no model of the hub")

    pulled = haversack("pull", f"{REPO}:Q4_K_M")
    assert pulled.returncode == 0, pulled.stderr
    assert pulled.stdout.strip().endswith("tiny-Q4_K_M.gguf")
    (listed,) = json.loads(haversack("ls", "--json").stdout)["models"]
    assert listed["model"] == f"{REPO}/tiny-Q4_K_M.gguf" and listed["path"] == pulled.stdout.strip()

    sent_bytes = hub.sent_bytes
    offline = {"HF_HUB_OFFLINE": "1"}
    again = haversack("plan", REPO, "--ram", "1GiB", "--json", **offline)
    assert again.returncode == 0, again.stderr
    assert json.loads(again.stdout)["expert_bytes"] == json.loads(planned.stdout)["expert_bytes"]
    ran = haversack("bench", f"{REPO}:Q4_K_M", "-p", "4", "-n", "2", "--json", **offline)
    assert ran.returncode == 0, ran.stderr
    assert hub.sent_bytes == sent_bytes

    removed = haversack("rm", f"{REPO}:Q4_K_M")
    assert removed.returncode == 0 and "freed" in removed.stdout
    gone = haversack("rm", f"{REPO}:Q4_K_M")
    assert gone.returncode == 2 and "not in the cache" in gone.stderr


def test_what_a_model_is(haversack: Haversack, hub: Hub) -> None:
    shown = haversack("show", f"{REPO}:Q8_0", "--json")
    assert shown.returncode == 0, shown.stderr
    facts = json.loads(shown.stdout)
    assert facts["architecture"] == "qwen3moe" and facts["experts"] > 0
    assert facts["file_bytes"] == hub.found["tiny-Q8_0.gguf"].stat().st_size


@pytest.mark.parametrize(
    ("name", "more", "said"),
    [
        (f"{REPO}:Q2_K", {}, "is no model: .*tiny-Q4_K_M"),
        ("tester/nothing", {}, "no file here and no model on the hub: check the name"),
        ("tester/login", {}, "check whether the network asks for a login"),
        (f"{REPO}:Q8_0", {"HF_HUB_OFFLINE": "1"}, "HF_HUB_OFFLINE is set: unset it"),
        (f"{REPO}:Q8_0", {"HF_ENDPOINT": "http://127.0.0.1:9"}, "the hub cannot be reached"),
    ],
)
def test_what_cannot_be_had_is_told(
    name: str, more: dict[str, str], said: str, haversack: Haversack
) -> None:
    found = haversack("run", name, "-p", "x", **more)
    assert found.returncode == 2
    (line,) = found.stderr.strip().splitlines()
    assert line.startswith("haversack: ")
    assert re.search(said, line), line
