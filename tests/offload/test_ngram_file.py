"""A saved table is read back as it was, or not at all."""

import logging
from pathlib import Path

import numpy as np
import pytest

from haversack.offload.ngram_file import read_table, save_table

MODEL, CHANGED = f"{'1' * 12}-{'a' * 20}", f"{'1' * 12}-{'b' * 20}"
TABLE = np.arange(64, dtype=np.uint64)


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_what_is_saved_comes_back(tmp_path: Path) -> None:
    folder = tmp_path / "made when it is needed"
    save_table(folder, MODEL, TABLE)
    found = read_table(folder, MODEL, TABLE.nbytes)
    assert found is not None and (found == TABLE).all() and found.flags.writeable
    assert names(folder) == {f"{MODEL}.ngrams"}


def test_nothing_saved_is_nothing_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    save_table(tmp_path, MODEL, np.zeros_like(TABLE))
    assert read_table(tmp_path, MODEL, TABLE.nbytes) is None
    assert not caplog.records and not names(tmp_path)


def test_any_bit_that_flips_is_noticed(tmp_path: Path) -> None:
    save_table(tmp_path, MODEL, TABLE)
    path = tmp_path / f"{MODEL}.ngrams"
    whole = path.read_bytes()
    for place in range(len(whole)):
        damaged = bytearray(whole)
        damaged[place] ^= 1 << place % 8
        path.write_bytes(damaged)
        assert read_table(tmp_path, MODEL, TABLE.nbytes) is None


def test_another_models_table_is_not_taken(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    save_table(tmp_path, MODEL, TABLE)
    (tmp_path / f"{MODEL}.ngrams").rename(tmp_path / f"{CHANGED}.ngrams")
    assert read_table(tmp_path, CHANGED, TABLE.nbytes) is None
    assert "it is damaged or was written for another model" in caplog.text


def test_a_table_of_another_size_is_not_taken(tmp_path: Path) -> None:
    save_table(tmp_path, MODEL, TABLE)
    assert read_table(tmp_path, MODEL, 2 * TABLE.nbytes) is None


def test_a_newer_model_replaces_the_table(tmp_path: Path) -> None:
    for model in (MODEL, CHANGED):
        save_table(tmp_path, model, TABLE)
    assert names(tmp_path) == {f"{CHANGED}.ngrams"}


def test_what_cannot_be_saved_is_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = tmp_path / "file"
    folder.write_bytes(b"in the way")
    with caplog.at_level(logging.WARNING, "haversack"):
        save_table(folder, MODEL, TABLE)
    assert "cannot save what drafts come from" in caplog.text
