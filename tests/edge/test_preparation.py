"""Preparing low copies: what is made, what an interruption leaves, what is found and repaired."""

import errno
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from haversack.devices.errors import ModelFileError, PromptError, StorageError
from haversack.edge.fidelity import BALANCED, Fidelity
from haversack.edge.loading import LoadOptions, builtin_model, load
from haversack.edge.planner import plan, streamed
from haversack.edge.preparation import Prepared, PrepareOptions, prepare
from haversack.quant.experts import expert_blocks
from haversack.quant.gguf import read_geometry
from haversack.quant.lowbit import find_low, prepared_low
from haversack.quant.nested import join_blocks
from haversack.quant.records import Record, give_up_records, importance_path, read_records
from haversack.tools.models.synth import TinyShape

SMALL = TinyShape(num_hidden_layers=2, num_experts=4, vocab_size=64)
TinyModel = Callable[..., Path]
CORPUS = Path(__file__).parents[1] / "data" / "corpus"


@pytest.fixture
def model(tiny_model: TinyModel, tmp_path: Path) -> Path:
    path = tmp_path / "model.gguf"
    shutil.copyfile(tiny_model(shape=SMALL, expert_type="Q8_0"), path)
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "cache"


def made(model: Path, folder: Path, low: str = "q2_k", **arguments: Any) -> Prepared:
    return prepare(model, low, options=PrepareOptions(cache_dir=folder, threads=2), **arguments)


def records_of(path: Path) -> bytes:
    layout, _ = read_records(path)
    return path.read_bytes()[layout.table_offset :]


def test_prepared_copies_are_found(model: Path, folder: Path) -> None:
    geometry = read_geometry(model)
    assert find_low(geometry, folder) is None
    first = made(model, folder)
    assert (first.num_experts, first.num_made, first.num_damaged) == (8, 8, 0)
    assert first.disk_bytes < first.expert_bytes / 2
    low = find_low(geometry, folder)
    assert low is not None
    assert (low.source, low.paths, low.rests) == ("q2_K", (first.path,), None)
    assert all(low.has(layer, expert) for layer in range(2) for expert in range(4))
    for copies in low.copies:
        assert [(copy.level, copy.part, copy.type_id) for copy in copies] == [(1, 1, 10)] * 3
    again = made(model, folder)
    assert (again.num_made, again.num_damaged) == (0, 0)


class Stopped(Exception):
    """Stands for whatever ends preparing."""


def prepare_half(model: Path, folder: Path) -> None:
    """Interrupt it once some low copies are made."""

    def stop(what: str, share: float) -> None:
        if share > 0.3:
            raise Stopped

    with pytest.raises(Stopped):
        prepare(model, "q2_k", options=PrepareOptions(cache_dir=folder, threads=2, progress=stop))


def test_low_copies_of_some_experts_are_told(
    model: Path, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    exact = streamed(plan(model, ram="2GiB", ctx=256, threads=1), 0.7)
    prepare_half(model, folder)
    planned = Fidelity(BALANCED).applied(exact, folder)
    share = f"{planned.low_share:.1%}"
    assert 0 < planned.low_share < 1 and planned.to_dict()["low_share"] == planned.low_share
    assert f"low copies are q2_K of {share} of the experts" in str(planned)
    load(planned, options=LoadOptions(cache_dir=folder, warm_start=False)).close()
    (told,) = [each.getMessage() for each in caplog.records if each.name == "haversack.model"]
    assert f"{share} of the experts have a low copy" in told
    assert f"`haversack prepare {model}` goes on" in told
    made(model, folder)
    whole = Fidelity(BALANCED).applied(exact, folder)
    assert whole.low_share == 1 and "low copies are q2_K;" in str(whole)


def test_an_interruption_loses_nothing(model: Path, folder: Path, tmp_path: Path) -> None:
    whole = made(model, tmp_path / "whole")
    prepare_half(model, folder)
    low = prepared_low(read_geometry(model), folder)
    assert low is not None
    present = sum(low.has(layer, expert) for layer in range(2) for expert in range(4))
    assert 0 < present < 8
    resumed = made(model, folder)
    assert resumed.num_made == 8 - present
    assert records_of(resumed.path) == records_of(whole.path)


def test_a_damaged_record_is_made_anew(model: Path, folder: Path) -> None:
    first = made(model, folder)
    before = records_of(first.path)
    low = prepared_low(read_geometry(model), folder)
    assert low is not None
    with first.path.open("r+b") as file:
        file.seek(low.copies[1][2].place(3) + 7)
        file.write(b"damage")
    repaired = made(model, folder)
    assert (repaired.num_made, repaired.num_damaged) == (1, 1)
    assert records_of(repaired.path) == before
    give_up_records(first.path, [Record(0, 1, 3)])
    low = prepared_low(read_geometry(model), folder)
    assert low is not None
    assert not low.has(1, 3)
    assert low.has(1, 2)


def test_another_type_replaces_the_copies(model: Path, folder: Path) -> None:
    made(model, folder)
    other = made(model, folder, "q3_k")
    assert other.num_made == 8
    assert [path.suffix for path in folder.iterdir() if path.name != "lock"] == [".low"]
    low = prepared_low(read_geometry(model), folder)
    assert low is not None
    assert low.source == "q3_K"


def test_a_changed_model_is_noticed(
    model: Path, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    old = made(model, folder)
    os.utime(model, ns=(1, 1))
    assert prepared_low(read_geometry(model), folder) is None
    assert "were made of an older version of its file" in caplog.text
    new = made(model, folder)
    assert new.num_made == 8
    assert new.path != old.path
    assert not old.path.exists()


def test_damaged_beginnings_are_reported(
    model: Path, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    first = made(model, folder)
    first.path.write_bytes(b"nonsense")
    assert prepared_low(read_geometry(model), folder) is None
    assert "is damaged: its layout was changed or cut; run `haversack prepare`" in caplog.text
    assert made(model, folder).num_made == 8
    os.truncate(first.path, first.path.stat().st_size - 1)
    assert prepared_low(read_geometry(model), folder) is None
    assert (
        ".low: it was cut; run `haversack prepare` again, until then there are none" in caplog.text
    )


def test_a_full_disk_is_told_before_anything_is_made(
    model: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    full = shutil.disk_usage(model.parent)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: full)
    with pytest.raises(StorageError, match=r"low copies need .* has 1000 B free: .*--cache-dir"):
        made(model, folder)


def test_a_disk_that_fills_up_keeps_what_is_finished(
    model: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write, num_writes = os.pwrite, 0

    def fill_up(*arguments: Any) -> int:
        nonlocal num_writes
        num_writes += 1
        if num_writes > 12:  # the layout, then three matrices and a checksum of each expert
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(*arguments)

    with monkeypatch.context() as patched:
        patched.setattr(os, "pwrite", fill_up)
        with pytest.raises(StorageError, match=r"No space left.*make room.*--cache-dir.*stays"):
            made(model, folder)
    resumed = made(model, folder)
    assert 8 - 3 <= resumed.num_made < 8
    assert resumed.num_damaged == 0


def test_what_has_no_experts_is_refused(folder: Path) -> None:
    twin = Path(__file__).parents[1] / "data/models/tales-twin.gguf"
    with pytest.raises(ModelFileError, match="no routed experts"):
        made(twin, folder)


def test_one_importance_is_given(model: Path, folder: Path, tmp_path: Path) -> None:
    with pytest.raises(PromptError, match="give one of them"):
        made(model, folder, imatrix=model, calibrate=model)
    with pytest.raises(PromptError, match="not UTF-8 text"):
        made(model, folder, calibrate=model)
    with pytest.raises(PromptError, match="cannot read --calibrate"):
        made(model, folder, calibrate=tmp_path / "missing")
    with pytest.raises(ModelFileError, match="imatrix file"):
        made(model, folder, imatrix=CORPUS / "README.md")


# ---------------------------------------------------------------- calibration
@pytest.fixture
def text(tmp_path: Path) -> Path:
    phrases = ["the fox", "ran home", "and slept", "in snow"]
    path = tmp_path / "text.txt"
    path.write_text(" ".join(np.random.default_rng(0).choice(phrases, 400)))
    return path


def numbers_of(path: Path) -> dict[str, np.ndarray]:
    with np.load(path) as saved:
        return {name: saved[name] for name in saved.files if name != "identity"}


def test_streamed_experts_meet_the_same_activations_and_weights(folder: Path, text: Path) -> None:
    collected: list[dict[str, np.ndarray]] = []
    for is_tight in (False, True):
        planned = plan(builtin_model(), "4GiB", 512)  # anew: the process has grown since the first
        tight_bytes = (planned.floor_bytes + planned.full_bytes) // 2
        ram_bytes = tight_bytes if is_tight else planned.ram_bytes
        options = PrepareOptions(ram_bytes, 1, folder / str(is_tight))
        done = prepare(builtin_model(), "q4_0", None, text, options)
        assert done.source.startswith("q4_0, weighted by")
        collected.append(numbers_of(importance_path(done.path)))
    in_memory, streamed = collected
    assert sum(name.startswith("blk.") for name in in_memory) == 2 * 3 * 8  # each matrix has two
    assert in_memory["router_weights"].shape[1] == 4  # of each expert that a token uses
    assert (in_memory["router_weights"] > 0).all() and len(in_memory["router_weights"]) > 8 * 32
    for name, numbers in in_memory.items():
        np.testing.assert_array_equal(numbers, streamed[name])
    counts = in_memory["blk.0.ffn_gate_exps.weight.counts"]
    assert counts.sum() % 4 == 0  # each token uses four experts
    assert counts.sum() > 4 * 500


def test_progress_is_told_from_the_beginning_of_each_step(folder: Path, text: Path) -> None:
    told: list[tuple[str, float]] = []
    options = PrepareOptions(None, 2, folder, lambda *progress: told.append(progress))
    prepare(builtin_model(), "q4_0", None, text, options)
    for step in ("collecting importance", "making low copies"):
        shares = [share for what, share in told if what == step]
        assert shares == sorted(shares) and shares[0] == 0 and shares[-1] == 1
        assert len(set(shares)) > 8  # a piece of the text tells it layer by layer


def test_importance_is_not_collected_twice(
    folder: Path, text: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = PrepareOptions(None, 2, folder)
    assert prepare(builtin_model(), "q4_0", None, text, options).num_made == 256
    monkeypatch.setattr("haversack.edge.preparation.load", None)  # nothing is loaded any more
    assert prepare(builtin_model(), "q4_0", None, text, options).num_made == 0


def test_a_short_text_is_refused(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "short.txt").write_text("Once")
    with pytest.raises(PromptError, match=r"give a text of some thousand"):
        made(builtin_model(), folder, calibrate=tmp_path / "short.txt")


# --------------------------------------------------------------------- nested
def test_nested_copies_and_their_rests_give_the_originals(model: Path, folder: Path) -> None:
    geometry = read_geometry(model)
    done = made(model, folder, "nested")
    assert (done.source, done.num_made) == ("nested", 8)
    low = prepared_low(geometry, folder)
    assert low is not None
    assert low.rests is not None
    data = done.path.read_bytes()
    for matrix, base, rest in zip(
        geometry.layers[1].matrices, low.copies[1], low.rests[1], strict=True
    ):
        assert rest is not None
        assert (base.level, rest.level, rest.type_id) == (1, 0, matrix.type_id)
        base_blocks, rest_blocks = (
            np.frombuffer(data, np.uint8, copy.num_bytes, copy.place(2)).reshape(-1, width)
            for copy, width in ((base, 20), (rest, 18))
        )
        joined = join_blocks(base_blocks, rest_blocks, matrix.type_id)
        assert joined.tobytes() == expert_blocks(geometry, matrix, 2).tobytes()


def test_nested_copies_are_not_weighted(model: Path, folder: Path, text: Path) -> None:
    with pytest.raises(PromptError, match="nested copies are not weighted"):
        made(model, folder, "nested", calibrate=text)
