"""Fewer threads than ranks, other waits and other processes change no bit."""

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from haversack import edge
from haversack.devices import team
from haversack.devices.crowd import Crowd, Setting
from haversack.edge.plain_llama import PlainLlama
from haversack.edge.planner import streamed

CTX, PREFILL = 512, 300  # above 256 tokens a row's attention is split among the ranks
TOKENS = [5 + 7 * i % 3000 for i in range(PREFILL + 12)]
USERS = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")

pytestmark = pytest.mark.skipif(bool(team.why_fixed()), reason=team.why_fixed() or "teams work")


def plain_logits(num_ranks: int) -> npt.NDArray[np.float32]:
    """Return what llama.cpp computes with `num_ranks` OpenMP threads."""
    with PlainLlama(edge.builtin_model(), CTX, num_ranks) as plain:
        return plain.logits(TOKENS, PREFILL)


@pytest.mark.parametrize("share", [None, 0.3], ids=["resident", "streamed"])
@pytest.mark.parametrize("num_ranks", [2, 3, 4])
def test_the_bits_are_those_of_the_ranks(
    num_ranks: int, share: float | None, trunk_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """This holds for any number of threads, also if it changes from pass to pass."""
    settings = [Setting(num, spin_s) for num in range(1, num_ranks + 1) for spin_s in (0.0, 1e-4)]
    passes = iter(settings * 100)
    monkeypatch.setattr(Crowd, "setting", lambda *_: next(passes))
    planned = edge.plan(edge.builtin_model(), ram="1GiB", ctx=CTX, threads=num_ranks)
    if share is not None:
        planned = streamed(planned, share)
    options = edge.LoadOptions(cache_dir=trunk_dir, warm_start=False)
    with edge.load(planned, options=options) as model:
        logits = model.logits(TOKENS, PREFILL)
        model.check_integrity()
    np.testing.assert_array_equal(logits, plain_logits(num_ranks))


def test_the_number_of_ranks_shows() -> None:
    """Without this the test above could not fail."""
    assert (plain_logits(1) != plain_logits(2)).any()


def fresh(code: str, **environment: str) -> str:
    """Return what a new process prints that runs `code`."""
    kept = {name: value for name, value in os.environ.items() if name not in USERS}
    done = subprocess.run(
        [sys.executable, "-c", code], env={**kept, **environment}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.parametrize("name", USERS)
def test_what_the_user_says_stands(name: str) -> None:
    code = "from haversack.devices.team import why_fixed; print(why_fixed())"
    assert fresh(code) == ""
    assert name in fresh(code, **{name: "1000" if name == "GOMP_SPINCOUNT" else "passive"})


def test_others_in_the_process_keep_openmp() -> None:
    """A context that is not ours has no helper of our team's, before and after one of ours."""
    code = f"""
from pathlib import Path
from haversack import edge
from haversack.edge.plain_llama import PlainLlama
from haversack.devices.team import why_fixed

def helpers():
    return sum("haversack-team" in p.read_text() for p in Path("/proc/self/task").glob("*/comm"))

def decode_plainly():
    with PlainLlama(edge.builtin_model(), 64, 2) as plain:
        plain.logits({TOKENS[:8]}, 4)

assert not why_fixed()
decode_plainly()
assert helpers() == 0
with edge.load(edge.builtin_model(), ram="1GiB", ctx=64, threads=2) as model:
    model.logits({TOKENS[:8]}, 4)
    assert helpers() == 1
    decode_plainly()
print("done")
"""
    assert fresh(code) == "done"


def test_a_forked_process_computes_with_a_team_of_its_own() -> None:
    with edge.load(edge.builtin_model(), ram="1GiB", ctx=64, threads=2) as model:
        expected = model.logits(TOKENS[:20], 16)
        child = os.fork()
        if child == 0:
            with edge.load(edge.builtin_model(), ram="1GiB", ctx=64, threads=2) as own:
                same = (own.logits(TOKENS[:20], 16) == expected).all()
            os._exit(0 if same else 1)
        assert ended(child, limit_s=300) == 0
        np.testing.assert_array_equal(model.logits(TOKENS[:20], 16), expected)


def ended(child: int, limit_s: float) -> int | None:
    """Return the exit code of a process; a process that hangs is killed and gives None."""
    end_s = time.monotonic() + limit_s
    while time.monotonic() < end_s:
        pid, status = os.waitpid(child, os.WNOHANG)
        if pid:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.02)
    os.kill(child, 9)
    os.waitpid(child, 0)
    return None


def test_threads_have_teams_of_their_own() -> None:
    """Two models that generate at once write what each writes alone."""

    def text(seed: int) -> str:
        with edge.load(edge.builtin_model(), ram="1GiB", ctx=128, threads=2) as model:
            return model.generate("Once upon a time", max_tokens=40, seed=seed).text

    alone = [text(seed) for seed in (1, 2)]
    together: dict[int, str] = {}
    write: Callable[[int], None] = lambda seed: together.update({seed: text(seed)})  # noqa: E731
    threads = [threading.Thread(target=write, args=[seed]) for seed in (1, 2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [together[1], together[2]] == alone
