"""Does a server with `--ram auto` keep answering while another program takes the memory?

    sudo python -m haversack.tools.bench.pressure MODEL [--limit 4GiB] [--hog 1GiB]

Runs `haversack serve` in a memory control group with a hard limit, and a client that asks again and
again. Then another program in the group takes --hog, keeps it for a while and ends. Prints the
budget before, under pressure and after; the exit code is 1 if a request fails, an answer differs,
or the budget did not follow. Needs a model whose experts do not all fit, and root on Linux.
"""

import argparse
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from haversack.devices.system.cgroup import limited_group
from haversack.devices.units import format_bytes, size_bytes
from haversack.tools.bench.clients import served
from haversack.tools.command_line import lacking, tool, verdict

try:
    import httpx
except ImportError as error:
    raise lacking(error, "test") from None

_HOG = "import sys; held = b'x' * int(sys.argv[1]); print(len(held), flush=True); sys.stdin.read()"
_BODY = {"prompt": "1 2 3", "max_tokens": 24, "temperature": 0}
_PATIENCE_S = 60.0


@dataclass
class Client:
    """Asks one thing again and again. `answers` counts by text, `failed` what got none."""

    url: str
    answers: dict[str, int] = field(default_factory=dict[str, int])
    failed: int = 0

    def run(self, done: threading.Event) -> None:
        """Ask until `done`."""
        with httpx.Client(base_url=self.url, timeout=600) as client:
            while not done.is_set():
                reply = client.post("/v1/completions", json=_BODY)
                if reply.status_code == 200:
                    text = str(reply.json()["choices"][0]["text"])
                    self.answers[text] = self.answers.get(text, 0) + 1
                else:
                    self.failed += 1

    def budget_bytes(self) -> int:
        """Return what the model has now; 0 before it is loaded."""
        found = httpx.get(f"{self.url}/stats", timeout=600).json()["model"]
        return 0 if found is None else int(found["stats"]["ram_budget_bytes"])


def joining(folder: Path) -> list[str]:
    """Return the beginning of a command line that runs the rest in the control group."""
    return ["sh", "-c", f'echo $$ > {folder}/cgroup.procs && exec "$@"', "sh"]


@contextmanager
def hog(folder: Path, num_bytes: int) -> Iterator[None]:
    """Have a process of the group hold so many bytes for the time of the block."""
    command = [*joining(folder), sys.executable, "-c", _HOG, str(num_bytes)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdout is not None
    try:
        process.stdout.readline()
        yield
    finally:
        process.communicate()


def wait_until(holds: Callable[[], bool]) -> float:
    """Return the seconds until it holds, at most `_PATIENCE_S`."""
    began_s = time.monotonic()
    while not holds() and time.monotonic() - began_s < _PATIENCE_S:
        time.sleep(0.05)
    return time.monotonic() - began_s


def measure(model: Path, limit_bytes: int, hog_bytes: int) -> bool:
    """Do what is told above; return whether all holds."""
    done = threading.Event()
    with limited_group(limit_bytes) as group:
        with served(model, "auto", parallel=1, queue=4, wrapper=joining(group.folder)) as url:
            client = Client(url)
            thread = threading.Thread(target=client.run, args=(done,))
            thread.start()
            try:
                wait_until(lambda: sum(client.answers.values()) >= 3)
                before = client.budget_bytes()
                with hog(group.folder, hog_bytes):
                    shrunk_s = wait_until(lambda: client.budget_bytes() < before - hog_bytes // 2)
                    under, asked = client.budget_bytes(), sum(client.answers.values())
                    wait_until(lambda: sum(client.answers.values()) >= asked + 3)
                grown_s = wait_until(lambda: client.budget_bytes() > before - hog_bytes // 4)
                after = client.budget_bytes()
            finally:
                done.set()
                thread.join()
    print(
        f"budget {format_bytes(before)}; {format_bytes(under)} {shrunk_s:.1f} s after"
        f" {format_bytes(hog_bytes)} were taken; {format_bytes(after)} {grown_s:.1f} s after they"
        f" were free; {sum(client.answers.values())} answers"
    )
    same = verdict("every request was answered, all the same", len(client.answers) == 1)
    fine = verdict("none failed", not client.failed)
    return verdict("the budget followed", under < before and after > under) and same and fine


@tool
def main(arguments: Sequence[str] | None) -> int:
    """Measure what the command line asks for; the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", type=Path)
    parser.add_argument("--limit", default="4GiB", help="of the control group")
    parser.add_argument("--hog", default="1GiB", help="what the other program takes")
    given = parser.parse_args(arguments)
    return 0 if measure(given.model, size_bytes(given.limit), size_bytes(given.hog)) else 1


if __name__ == "__main__":
    sys.exit(main())
