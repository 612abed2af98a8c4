"""Beside busy programs, each competitor in a process of its own."""

import argparse
from pathlib import Path

import pytest

from haversack import edge
from haversack.tools.bench import busy as bench_busy


def test_every_fixed_setting_competes() -> None:
    names = [setting.name for setting in bench_busy.fixed_settings(2)]
    assert names == [
        "1 thread",
        "2 threads spinning",
        "2 threads spinning briefly",
        "2 threads sleeping",
    ]


@pytest.mark.slow
def test_a_run_decodes_the_same_text_in_another_process() -> None:
    given = argparse.Namespace(model=edge.builtin_model(), ram=None, seconds=1, tokens=20)
    with bench_busy.busy_loops(1):
        ours = bench_busy.run_once(bench_busy.OURS, given)
    given.threads = None
    here = bench_busy.decode_here(given)
    assert ours["tok_s"] > 0 and ours["texts"] == here["texts"] and len(here["texts"]) == 1


def test_a_run_that_fails_says_why() -> None:
    given = argparse.Namespace(model=Path("missing.gguf"), ram=None, seconds=1, tokens=20)
    with pytest.raises(RuntimeError, match="missing"):
        bench_busy.run_once(bench_busy.OURS, given)


@pytest.mark.parametrize(("loops", "ours", "holds"), [(0, 97.0, False), (2, 81.0, True)])
def test_the_bound_is_of_the_best_fixed_setting(
    loops: int, ours: float, holds: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [
        {"busy_loops": loops, "setting": name, "tok_s": speed}
        for name, speed in (("haversack", ours), ("1 thread", 100.0), ("2 threads", 50.0))
    ]
    assert bench_busy.holds(rows) == holds
    assert "1 thread" in capsys.readouterr().out
