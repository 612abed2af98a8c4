"""OpenMP is told once, at loading, and nobody else hears of it."""

import os
import subprocess
import sys

import pytest

from haversack.devices._openmp import brief_spinning


def test_it_is_set_for_the_loading_only(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY"):
        monkeypatch.delenv(name, raising=False)
    with brief_spinning():
        assert os.environ["GOMP_SPINCOUNT"] == "10000"
    assert "GOMP_SPINCOUNT" not in os.environ


@pytest.mark.parametrize("name", ["GOMP_SPINCOUNT", "OMP_WAIT_POLICY"])
def test_what_the_user_says_stands(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    before = {**os.environ, name: "active"}
    monkeypatch.setenv(name, "active")
    with brief_spinning():
        assert dict(os.environ) == before
    assert dict(os.environ) == before


def test_the_engine_is_loaded_with_it() -> None:
    code = (
        "import os, sys; seen = [];"
        "hook = lambda event, args: seen.append(os.environ.get('GOMP_SPINCOUNT'))"
        " if event == 'ctypes.dlopen' and 'libllama' in str(args[0]) else None;"
        "sys.addaudithook(hook); import haversack.edge; print(seen[0])"
    )
    env = {k: v for k, v in os.environ.items() if k not in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True)
    assert done.stdout.strip() == "10000", done.stderr
