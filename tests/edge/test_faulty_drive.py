"""A slow, stuttering or failing drive slows or fails a call, and never changes a number."""

import errno
import itertools
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from haversack import edge
from haversack.devices.storage import Buffer, DirectFile
from haversack.devices.system import host
from haversack.edge.planner import streamed
from haversack.tools.models.architectures import TinyShape

TOKENS = [1 + 7 * i % 200 for i in range(110)]
PREFILL = 30
Fault = Callable[[int], None]  # is told the number of each read, before it happens


def stalls(number: int) -> None:
    if number % 20 == 0:
        time.sleep(0.01)


def fails_once(number: int) -> None:
    if number == 1000:
        raise edge.StorageError(errno.EIO, "read 1000: input/output error")


class FaultyFile(DirectFile):
    """Reads that `fault` is told of first."""

    def __init__(self, path: Path, fault: Fault) -> None:
        super().__init__(path)
        self._fault = fault
        self._numbers = itertools.count(1)

    def read_into(self, buffer: Buffer, offset: int, need_bytes: int) -> None:
        self._fault(next(self._numbers))
        super().read_into(buffer, offset, need_bytes)


@pytest.fixture
def halves(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Have the system bring half of what a read asks for, as it may. The bytes of each read."""
    whole, brought = host.read_at, list[int]()

    def read_half(file: Any, view: memoryview, offset: int) -> int:
        if len(view) > 4096:
            view = view[: max(4096, len(view) // 2 // 4096 * 4096)]
        brought.append(whole(file, view, offset))
        return brought[-1]

    monkeypatch.setattr(host, "read_at", read_half)
    return brought


@pytest.fixture
def planned(tiny_model: Any) -> edge.Plan:
    """A plan with slots for a small part of the experts, so that most are read again and again."""
    path = tiny_model("qwen3moe", shape=TinyShape(num_experts=16))
    return streamed(edge.plan(path, ram="1TiB", ctx=128, threads=1), 0.1)


def options(trunk_dir: Path, fault: Fault) -> edge.LoadOptions:
    return edge.LoadOptions(cache_dir=trunk_dir, open_file=lambda path: FaultyFile(path, fault))


@pytest.fixture
def expected(planned: edge.Plan, trunk_dir: Path) -> np.ndarray[Any, Any]:
    with edge.load(planned, options=edge.LoadOptions(cache_dir=trunk_dir)) as model:
        return model.logits(TOKENS, PREFILL)


def test_stalls_only_cost_time(
    planned: edge.Plan, trunk_dir: Path, expected: np.ndarray[Any, Any]
) -> None:
    with edge.load(planned, options=options(trunk_dir, stalls)) as model:
        assert (model.logits(TOKENS, PREFILL) == expected).all()
        model.check_integrity()


@pytest.mark.parametrize("fault", [stalls, lambda _: None])
def test_short_reads_only_cost_time(
    fault: Fault,
    planned: edge.Plan,
    trunk_dir: Path,
    expected: np.ndarray[Any, Any],
    halves: list[int],
) -> None:
    with edge.load(planned, options=options(trunk_dir, fault)) as model:
        assert (model.logits(TOKENS, PREFILL) == expected).all()
        assert len(halves) > 100
        assert model.stats().bytes_read > 0
        model.check_integrity()


def test_an_error_in_the_thousandth_read_fails_one_call(
    planned: edge.Plan, trunk_dir: Path, expected: np.ndarray[Any, Any]
) -> None:
    errors = []
    with edge.load(planned, options=options(trunk_dir, fails_once)) as model:
        for _ in range(6):
            try:
                assert (model.logits(TOKENS, PREFILL) == expected).all()
            except edge.StorageError as error:
                errors.append(str(error))
            model.check_integrity()
    assert len(errors) == 1 and "read 1000" in errors[0]
