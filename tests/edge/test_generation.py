"""A generation ends where it is told to, at any line, and leaves the model to the next."""

import _thread
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from math import inf
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

from haversack import edge
from haversack.edge.planner import streamed
from haversack.tools.models.architectures import TinyShape

TinyModel = Callable[..., Path]
OURS = ("/edge/", "/offload/", "/devices/")


class PressesCtrlC:
    """Presses Ctrl-C as it is freed, as a signal does: Python acts on it where it looks next."""

    __del__ = staticmethod(_thread.interrupt_main)


@contextmanager
def ctrl_c_at_line(number: int) -> Iterator[list[int]]:
    """Press Ctrl-C when line `number` of haversack's own begins; the lines that were begun."""
    lines = [0]

    def trace(frame: FrameType, event: str, _: object) -> Any:
        if not any(folder in frame.f_code.co_filename for folder in OURS):
            return None
        if event == "line":
            lines[0] += 1
            if lines[0] == number:  # not in here, where Python would look at once: as this returns
                _freed_by_return = PressesCtrlC()
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        yield lines
    finally:
        sys.settrace(before)


def instants(num_lines: int, wanted: int) -> list[int]:
    """`wanted` lines of `num_lines`, spread evenly; the first and last twenty all of them."""
    spread = range(21, max(22, num_lines - 20), max(1, num_lines // wanted))
    return sorted({*range(1, 21), *spread, *range(max(1, num_lines - 20), num_lines + 1)})


@pytest.fixture(params=["resident", "streamed"])
def model(request: pytest.FixtureRequest, tiny_model: TinyModel, trunk_dir: Path) -> Any:
    planned = edge.plan(tiny_model(shape=TinyShape(num_experts=16)), "1GiB", ctx=64, threads=1)
    if request.param != "resident":
        planned = streamed(planned, 0.25)
    options = edge.LoadOptions(cache_dir=trunk_dir, warm_start=False)
    with edge.load(planned, options=options) as loaded:
        yield loaded


@pytest.mark.slow
def test_ctrl_c_at_any_line_leaves_the_model_usable(model: edge.Model) -> None:
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        text = model.generate([1, 2, 3], 4, temperature=0).text
        with ctrl_c_at_line(0) as lines:
            assert model.generate([1, 2, 3], 4, temperature=0).text == text
        kept = list[KeyboardInterrupt]()  # as a console does, with the frames that they came from
        for number in instants(lines[0], 25):
            try:
                with ctrl_c_at_line(number):
                    _ = model.generate([1, 2, 3], 4, temperature=0).text
            except KeyboardInterrupt as interrupt:
                kept.append(interrupt)
            again = model.generate([1, 2, 3], 4, temperature=0)
            assert (again.text, again.finish_reason) == (text, "length"), number
            model.check_integrity()
        assert len(kept) > 30
    finally:
        signal.signal(signal.SIGINT, before)


def test_ctrl_c_leaves_no_lock_held(model: edge.Model) -> None:
    """Also while somebody keeps the traceback, and so the frames."""

    def use() -> None:
        model.generate([1, 2, 3], 4).close()
        model.tokenize([1])
        model.check_integrity()

    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with ctrl_c_at_line(0) as lines:
            use()
        kept = list[KeyboardInterrupt]()
        for number in range(1, lines[0] + 1):
            try:
                with ctrl_c_at_line(number):
                    use()
            except KeyboardInterrupt as interrupt:
                kept.append(interrupt)
            other = threading.Thread(target=use, daemon=True)
            other.start()
            other.join(timeout=300)
            assert not other.is_alive(), number
        assert len(kept) > 50
    finally:
        signal.signal(signal.SIGINT, before)


# Cancels a generation from a signal handler that runs at its every line, one after the other.
PROGRAM = """
import signal, sys
from pathlib import Path
from haversack import edge
from haversack.tools.models.synth import write_tiny

path = write_tiny("qwen3moe", Path(sys.argv[1]) / "m.gguf")[0]
with edge.load(path, ram="1GiB", ctx=64, threads=1) as model:
    number = 0
    while True:
        number, line = number + 1, 0
        generation = model.generate([1, 2, 3], 2, temperature=0)
        signal.signal(signal.SIGINT, lambda *_: generation.cancel())

        def trace(frame, event, _):
            global line
            if not frame.f_code.co_filename.endswith("edge/generation.py"):
                return None
            line += event == "line"
            if line == number and event == "line":
                signal.raise_signal(signal.SIGINT)
            return trace

        sys.settrace(trace)
        generation.text
        generation.close()
        sys.settrace(None)
        if line < number:
            break
    print(number)
"""


def test_a_signal_handler_may_cancel_at_any_line(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(tmp_path)], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 50


def test_a_call_that_waits_for_its_turn_can_be_cancelled(
    model: edge.Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("haversack.edge.schedule._IDLE_S", inf)  # it does not lose its sequence
    running = model.generate([1, 2, 3], 4)
    next(running)
    waiting = model.generate([4, 5], 4)
    thread = threading.Thread(target=lambda: waiting.text)
    thread.start()
    waiting.cancel()
    thread.join(timeout=300)
    assert not thread.is_alive()
    assert (waiting.finish_reason, waiting.tokens) == ("cancelled", [])
    assert running.text and running.finish_reason == "length"


def test_a_late_cancel_does_not_reach_the_next_call(model: edge.Model) -> None:
    first = model.generate([1, 2, 3], 2, temperature=0)
    text = first.text
    second = model.generate([1, 2, 3], 2, temperature=0)
    piece = next(second)
    first.cancel()
    assert piece + "".join(second) == text
    assert second.finish_reason == "length"
