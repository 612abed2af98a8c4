"""A forked process that uses its parent's model gets an error at once and never waits."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from haversack.devices.errors import ClosedError
from haversack.devices.forks import Birthplace

pytestmark = [
    pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork there"),
    pytest.mark.slow,
]


def test_a_place_is_known_again_in_its_process_only(monkeypatch: pytest.MonkeyPatch) -> None:
    place = Birthplace()
    place.check()
    monkeypatch.setattr(os, "getpid", lambda: 12345)
    assert not place.is_here
    with pytest.raises(ClosedError, match=r"loaded in process \d+ .* in this one, 12345, too"):
        place.check()


# Each way of use is tried by a child of its own, which is to end by itself.
PROGRAM = """
import multiprocessing, os, sys, threading
from pathlib import Path
from haversack import edge
from haversack.edge.planner import streamed

path, cache, share, threads = sys.argv[1], Path(sys.argv[2]), sys.argv[3], int(sys.argv[4])
plan = edge.plan(path, "1GiB", ctx=64, threads=threads)
if share != "resident":
    plan = streamed(plan, float(share))

def load():
    return edge.load(plan, options=edge.LoadOptions(cache_dir=cache))

def told(model):
    return model.generate([1, 2, 3], 4, temperature=0).text

begun, ends = threading.Event(), threading.Event()

def load_for_ever():  # another thread loads a model while this one forks
    with ledger.loading:
        begun.set()
        ends.wait()

def refused(call):
    try:
        call()
    except edge.ClosedError as error:
        assert f"process {parent}" in str(error), error
        return
    raise AssertionError("it was not refused")

def child(way):
    if way == "use":
        refused(lambda: told(model))
        refused(lambda: next(model.iter_logits([1, 2], 1)))
        refused(model.chat_template)
        model.close()
        refused(lambda: told(model))
    elif way == "go on":
        refused(lambda: next(running))
        running.close()
    elif way == "own":
        for _ in range(2):
            with load() as own:
                assert told(own) == want
    elif way == "exec":
        os.execv(sys.executable, [sys.executable, "-c", "raise SystemExit(0)"])

from haversack.devices.ledger import ledger

parent, model = os.getpid(), load()
want = told(model)
running = model.generate([4, 5], 9, temperature=0)
next(running)
loading = threading.Thread(target=load_for_ever, daemon=True)
loading.start()
begun.wait()
for way in ("use", "go on", "own", "exec"):
    pid = os.fork()
    if pid == 0:
        child(way)
        sys.exit(0)  # all that Python does at its end, too
    assert os.waitpid(pid, 0)[1] == 0, way
with multiprocessing.get_context("fork").Pool(2) as pool:
    pool.map(child, ["own", "use"])
ends.set()
running.close()
assert told(model) == want
model.close()
"""


@pytest.mark.parametrize("share", ["resident", "0.25"])
@pytest.mark.parametrize("threads", [1, 2])
def test_a_child_is_refused_and_may_load_its_own(
    tiny_model: Callable[..., Path], trunk_dir: Path, share: str, threads: int
) -> None:
    command = [
        sys.executable,
        "-c",
        PROGRAM,
        str(tiny_model()),
        str(trunk_dir),
        share,
        str(threads),
    ]
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("OMP_", "GOMP_"))}
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment)
    assert (done.returncode, done.stderr) == (0, "")


def test_openmps_threads_are_not_waited_for(tiny_model: Callable[..., Path]) -> None:
    """A user's setting for OpenMP's waits keeps OpenMP in use, whose threads a child lacks."""
    program = """
import os, sys
from haversack import edge

def told(threads):
    with edge.load(sys.argv[1], ram="1GiB", ctx=64, threads=threads) as model:
        return model.generate([1, 2, 3], 4, temperature=0).text

want = told(2)
pid = os.fork()
if pid == 0:
    try:
        told(2)
    except edge.HaversackError as error:
        assert "forked" in str(error) and "--threads 1" in str(error), error
        sys.exit(0 if told(1) == want else 1)
    sys.exit(2)
assert os.waitpid(pid, 0)[1] == 0
"""
    done = subprocess.run(
        [sys.executable, "-c", program, str(tiny_model())],
        timeout=300,
        env={**os.environ, "OMP_WAIT_POLICY": "passive"},
    )
    assert done.returncode == 0
