"""A saved table is read back as it was, or not at all."""

import logging
from pathlib import Path

import numpy as np
import pytest

from haversack.offload.ngram_file import read_table, save_table
from haversack.quant.trunk import ngrams_path

TABLE = np.arange(64, dtype=np.uint64)


@pytest.fixture
def trunk(tmp_path: Path) -> Path:
    """Where a trunk would lie."""
    return tmp_path / f"{'1' * 12}-{'a' * 20}.gguf"


@pytest.fixture
def changed(trunk: Path) -> Path:
    """Where the trunk of a newer version of the model would lie."""
    return trunk.with_name(f"{'1' * 12}-{'b' * 20}.gguf")


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_what_is_saved_comes_back(trunk: Path) -> None:
    trunk = trunk.parent / "made when it is needed" / trunk.name
    save_table(trunk, TABLE)
    found = read_table(trunk, TABLE.nbytes)
    assert found is not None and (found == TABLE).all() and found.flags.writeable
    assert names(trunk.parent) == {ngrams_path(trunk).name}


def test_nothing_saved_is_nothing_said(trunk: Path, caplog: pytest.LogCaptureFixture) -> None:
    save_table(trunk, np.zeros_like(TABLE))
    assert read_table(trunk, TABLE.nbytes) is None
    assert not caplog.records and not names(trunk.parent)


def test_any_bit_that_flips_is_noticed(trunk: Path) -> None:
    save_table(trunk, TABLE)
    path = ngrams_path(trunk)
    whole = path.read_bytes()
    for place in range(len(whole)):
        damaged = bytearray(whole)
        damaged[place] ^= 1 << place % 8
        path.write_bytes(damaged)
        assert read_table(trunk, TABLE.nbytes) is None


def test_another_models_table_is_not_taken(
    trunk: Path, changed: Path, caplog: pytest.LogCaptureFixture
) -> None:
    save_table(trunk, TABLE)
    ngrams_path(trunk).rename(ngrams_path(changed))
    assert read_table(changed, TABLE.nbytes) is None
    assert "it is damaged or was written for another model" in caplog.text


def test_a_table_of_another_size_is_not_taken(trunk: Path) -> None:
    save_table(trunk, TABLE)
    assert read_table(trunk, 2 * TABLE.nbytes) is None


def test_a_newer_model_replaces_the_table(trunk: Path, changed: Path) -> None:
    for path in (trunk, changed):
        save_table(path, TABLE)
    assert names(trunk.parent) == {ngrams_path(changed).name}


def test_what_cannot_be_saved_is_logged(trunk: Path, caplog: pytest.LogCaptureFixture) -> None:
    trunk.parent.joinpath("file").write_bytes(b"in the way")
    with caplog.at_level(logging.WARNING, "haversack"):
        save_table(trunk.parent / "file" / trunk.name, TABLE)
    assert "cannot save what drafts come from" in caplog.text
