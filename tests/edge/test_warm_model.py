"""A model loaded again starts with the experts its last run left, and says the same to the bit."""

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from haversack import edge
from haversack.devices.storage import Buffer, DirectFile
from haversack.edge.planner import streamed
from haversack.tools.models.architectures import TinyShape

TOKENS = [1 + 7 * i % 200 for i in range(30)]
SHAPE = TinyShape(num_hidden_layers=4, num_experts=16)

Logits = np.ndarray[Any, Any]
Plan = Callable[[float], edge.Plan]


@pytest.fixture
def plan(tiny_model: Any) -> Plan:
    """A plan with slots for a share of the experts."""
    whole = edge.plan(tiny_model("qwen3moe", shape=SHAPE), ram="1TiB", ctx=128, threads=1)
    return lambda share: streamed(whole, share)


class LateFile(DirectFile):
    """Reads that take `delay_s` each; `num_reads` have begun in all files."""

    delay_s = 0.0
    num_reads = 0

    def read_into(self, buffer: Buffer, offset: int, need_bytes: int) -> None:
        LateFile.num_reads += 1
        time.sleep(self.delay_s)
        super().read_into(buffer, offset, need_bytes)


class FailingFile(DirectFile):
    """The first `num_failing` reads of all files fail."""

    num_failing = 0

    def read_into(self, buffer: Buffer, offset: int, need_bytes: int) -> None:
        FailingFile.num_failing -= 1
        if FailingFile.num_failing >= 0:
            raise edge.StorageError(5, "input/output error")
        super().read_into(buffer, offset, need_bytes)


def options(folder: Path, **settings: Any) -> edge.LoadOptions:
    return edge.LoadOptions(cache_dir=folder, **settings)


def run(model: edge.Model, prefill: int = 1) -> Logits:
    """Logits of `TOKENS`, the books looked at after each."""
    rows = []
    for row in model.iter_logits(TOKENS, prefill):
        model.check_integrity()
        rows.append(row)
    return np.stack(rows)


def kept(folder: Path) -> list[Path]:
    return list(folder.glob("*.resident*"))


def wait_until_still(model: edge.Model) -> None:
    """Return when no read waits or is under way."""
    assert model._engine is not None and model._engine.experts is not None
    counts = model._engine.experts.readers.counts
    while counts().num_ahead or counts().num_reading:
        time.sleep(0.001)


@pytest.mark.parametrize(
    ("prefill", "share", "delay_s"),
    [(1, 0.0, 0.0), (1, 0.3, 0.001), (1, 0.9, 0.001), (20, 0.3, 0.001), (20, 0.9, 0.0)],
)
def test_every_logit_is_the_same(
    prefill: int, share: float, delay_s: float, plan: Plan, tmp_path: Path, monkeypatch: Any
) -> None:
    with edge.load(plan(share), options=options(tmp_path)) as model:
        expected = run(model, prefill)
    assert len(kept(tmp_path)) == 1
    monkeypatch.setattr(LateFile, "delay_s", delay_s)
    with edge.load(plan(share), options=options(tmp_path, open_file=LateFile)) as model:
        assert (run(model, prefill) == expected).all()
        assert (run(model, prefill) == expected).all()
        assert model.stats().ram_peak_bytes <= model.plan.ram_bytes


def test_the_first_tokens_find_their_experts(plan: Plan, tmp_path: Path) -> None:
    needed = []
    for _ in range(2):
        with edge.load(plan(0.9), options=options(tmp_path)) as model:
            wait_until_still(model)
            run(model)
            needed.append(model.stats().needed)
    assert needed[1] < needed[0] / 3


@pytest.mark.parametrize("share", [0.05, 0.6])
def test_another_budget_takes_what_fits(share: float, plan: Plan, tmp_path: Path) -> None:
    with edge.load(plan(0.3), options=options(tmp_path)) as model:
        expected = run(model)
    with edge.load(plan(share), options=options(tmp_path)) as model:
        assert (run(model) == expected).all()


def test_without_it_nothing_is_read_or_left(plan: Plan, tmp_path: Path) -> None:
    with edge.load(plan(0.3), options=options(tmp_path, warm_start=False)) as model:
        run(model)
    assert kept(tmp_path) == []
    with edge.load(plan(0.3), options=options(tmp_path)) as model:
        run(model)
    with edge.load(plan(0.3), options=options(tmp_path, warm_start=False)) as model:
        wait_until_still(model)
        assert model.stats().bytes_read == 0


def test_a_model_that_was_not_used_leaves_what_is_there(plan: Plan, tmp_path: Path) -> None:
    with edge.load(plan(0.3), options=options(tmp_path)) as model:
        run(model)
    (path,) = kept(tmp_path)
    before = path.read_bytes()
    edge.load(plan(0.3), options=options(tmp_path)).close()
    assert path.read_bytes() == before


def test_a_damaged_file_is_ignored_and_written_again(
    plan: Plan, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with edge.load(plan(0.3), options=options(tmp_path)) as model:
        expected = run(model)
    (path,) = kept(tmp_path)
    damaged = path.read_bytes()[:-20]
    path.write_bytes(damaged)
    with edge.load(plan(0.3), options=options(tmp_path)) as model:
        wait_until_still(model)
        assert model.stats().bytes_read == 0
        assert (run(model) == expected).all()
    assert "damaged" in caplog.text
    assert path.read_bytes() != damaged


def test_a_changed_model_starts_afresh(tiny_model: Any, tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(tiny_model("qwen3moe", shape=SHAPE).read_bytes())
    for _ in range(2):
        planned = streamed(edge.plan(path, ram="1TiB", ctx=128, threads=1), 0.3)
        with edge.load(planned, options=options(tmp_path)) as model:
            wait_until_still(model)
            assert model.stats().bytes_read == 0
            run(model)
        assert len(kept(tmp_path)) == 1  # the older one went with its trunk
        os.utime(path, ns=(0, 0))


def test_a_folder_that_refuses_does_not_fail_the_close(
    plan: Plan, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with edge.load(plan(0.3), options=options(tmp_path)) as model:
        run(model)
        (trunk,) = tmp_path.glob("*.gguf")
        trunk.with_suffix(".resident").mkdir()
    assert "cannot save which experts were used" in caplog.text


def test_reads_that_fail_at_the_start_fail_nothing(
    plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with edge.load(plan(0.9), options=options(tmp_path)) as model:
        expected = run(model)
    monkeypatch.setattr(FailingFile, "num_failing", 100)
    with edge.load(plan(0.9), options=options(tmp_path, open_file=FailingFile)) as model:
        while FailingFile.num_failing > 0:
            time.sleep(0.001)
        assert (run(model) == expected).all()
        wait_until_still(model)
        assert (run(model) == expected).all()


def test_closing_does_not_wait_for_the_rest(
    plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with edge.load(plan(0.9), options=options(tmp_path)) as model:
        run(model)
    late = options(tmp_path, open_file=LateFile)
    monkeypatch.setattr(LateFile, "num_reads", 0)
    with edge.load(plan(0.9), options=late) as model:
        wait_until_still(model)
    num_all = LateFile.num_reads
    assert num_all > 100
    monkeypatch.setattr(LateFile, "num_reads", 0)
    monkeypatch.setattr(LateFile, "delay_s", 0.2)  # all would take ten seconds
    edge.load(plan(0.9), options=late).close()
    assert LateFile.num_reads < num_all
