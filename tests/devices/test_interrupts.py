"""Stopping a call by request or Ctrl-C, and handlers that must not change."""

import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType

import pytest

from haversack.devices.interrupts import StopFlag


@pytest.fixture(autouse=True)
def pythons_own_handler() -> Iterator[None]:
    """Each test begins with Python's own handler of Ctrl-C, and may change it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_a_request_stays_until_it_is_cleared() -> None:
    stop = StopFlag()
    assert not stop.requested
    stop.request()
    assert stop.requested
    stop.clear()
    assert not stop.requested


def test_ctrl_c_is_a_request_inside_the_block_and_an_exception_after_it() -> None:
    stop, seen = StopFlag(), list[bool]()
    with pytest.raises(KeyboardInterrupt), stop.listening():
        signal.raise_signal(signal.SIGINT)
        seen.append(stop.requested)
    assert seen == [True]
    assert not stop.requested  # the next call is not concerned
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_request_for_one_call_does_not_reach_the_next() -> None:
    model, first, second = StopFlag(), StopFlag(), StopFlag()
    model.clear(first)
    first.request()
    assert model.requested
    model.clear(second)
    first.request()  # too late
    assert not model.requested
    second.request()
    assert model.requested


def test_ctrl_c_of_an_earlier_block_is_forgotten() -> None:
    """Ctrl-C came while an earlier block was ending, and Python itself raised it."""
    stop = StopFlag()
    stop.hear(signal.SIGINT, None)
    with stop.listening():
        assert not stop.requested
    assert not stop.requested


def test_ctrl_c_counts_where_the_block_ends_with_an_error() -> None:
    with pytest.raises(KeyboardInterrupt), StopFlag().listening():
        signal.raise_signal(signal.SIGINT)
        raise ZeroDivisionError


def test_nothing_happens_without_ctrl_c() -> None:
    stop = StopFlag()
    with stop.listening():
        assert signal.getsignal(signal.SIGINT) is not signal.default_int_handler
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert not stop.requested


def test_a_mere_request_raises_nothing() -> None:
    stop = StopFlag()
    with stop.listening():
        stop.request()
    assert stop.requested


def test_the_handler_is_given_back_after_an_error() -> None:
    with pytest.raises(ZeroDivisionError), StopFlag().listening():
        raise ZeroDivisionError
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


@pytest.mark.parametrize("kind", ["a function", "ignored", "the system's"])
def test_a_foreign_handler_is_left_alone(kind: str) -> None:
    """A server or a notebook that installed a handler decides what Ctrl-C does."""
    calls: list[int] = []

    def theirs(number: int, _: FrameType | None) -> None:
        calls.append(number)

    foreign = {"a function": theirs, "ignored": signal.SIG_IGN, "the system's": signal.SIG_DFL}
    signal.signal(signal.SIGINT, foreign[kind])
    stop = StopFlag()
    with stop.listening():
        assert signal.getsignal(signal.SIGINT) == foreign[kind]
        if kind != "the system's":  # that would end the process
            signal.raise_signal(signal.SIGINT)
        assert not stop.requested
    assert signal.getsignal(signal.SIGINT) == foreign[kind]
    assert calls == ([signal.SIGINT] if kind == "a function" else [])


def test_other_threads_do_not_touch_handlers() -> None:
    """Python lets only the main thread set them."""
    stop, seen = StopFlag(), list[object]()

    def call() -> None:
        with stop.listening():
            seen.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=call)
    thread.start()
    thread.join()
    assert seen == [signal.default_int_handler]
    assert not stop.requested


def test_the_outermost_block_raises() -> None:
    outer, inner, reached = StopFlag(), StopFlag(), list[str]()
    with pytest.raises(KeyboardInterrupt), outer.listening():
        with inner.listening():
            signal.raise_signal(signal.SIGINT)
            reached.append("inner")
        reached.append("outer")
    assert reached == ["inner", "outer"]


# Decodes one batch after the other, until Ctrl-C; then shows that the context still works.
PROGRAM = """
import sys
from pathlib import Path
from haversack.devices.llama import ContextShape, LlamaContext
from haversack.devices.llama_model import LlamaModel

model = LlamaModel(Path(sys.argv[1]))
context = LlamaContext(model, ContextShape(ctx_tokens=4096, batch_tokens=2048, threads=1))
try:
    print("decoding", flush=True)
    while True:
        context.forget(0)
        context.decode([1, 2, 3, 4] * 512)
except KeyboardInterrupt:
    print("interrupted", context.num_tokens())
context.decode([1, 2, 3])
print("decoded", context.num_tokens())
context.close()
model.close()
"""


def test_ctrl_c_while_llama_computes(tiny_model: Callable[..., Path]) -> None:
    command = [sys.executable, "-c", PROGRAM, str(tiny_model())]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "decoding\n"
        process.send_signal(signal.SIGINT)
        output, _ = process.communicate(timeout=300)
    assert process.returncode == 0
    assert output.splitlines() == ["interrupted 0", "decoded 3"]
