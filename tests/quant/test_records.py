"""The file of low copies: what is written is read, damage is found, killed writers lose nothing."""

import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from haversack.devices.errors import StorageError
from haversack.devices.memory import PAGE_BYTES
from haversack.quant.records import (
    Layout,
    Record,
    RecordFile,
    Stored,
    digest,
    give_up_records,
    list_low_files,
    read_records,
)
from haversack.quant.trunk import locked, remove_trunks

NAME = "0123456789ab-0123456789abcdef0123.low"
LAYOUT = Layout(
    model="/models/m.gguf",
    source="q2_K",
    identity="q2_K even",
    num_experts=(3, 2),
    matrices=(
        ((Stored(10, 5000), Stored(10, 0)), (Stored(10, 4096), Stored(11, 1))),
        ((Stored(12, 10), Stored(12, 20)), (Stored(12, 30), Stored(12, 40))),
    ),
)


def matrices_of(record: Record, seed: int = 0) -> list[np.ndarray]:
    """Return random bytes for each matrix that the layout stores."""
    rng = np.random.default_rng([seed, *record])
    stored = LAYOUT.matrices[record.slice_idx][record.layer_idx]
    return [rng.integers(0, 256, each.num_bytes, np.uint8) for each in stored if each.num_bytes]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / NAME


def filled(path: Path) -> RecordFile:
    file = RecordFile(path, LAYOUT)
    for record in LAYOUT.records():
        file.write(record, matrices_of(record))
    return file


def test_records_lie_where_the_layout_says(path: Path) -> None:
    filled(path).close()
    data = path.read_bytes()
    assert len(data) == LAYOUT.num_bytes
    for record in LAYOUT.records():
        copies = [c for c in LAYOUT.copies(record.slice_idx, record.layer_idx, 7) if c is not None]
        for copy, matrix in zip(copies, matrices_of(record), strict=True):
            assert (copy.part, copy.offset % PAGE_BYTES, copy.stride_bytes % PAGE_BYTES) == (
                7,
                0,
                0,
            )
            place = copy.place(record.expert)
            assert data[place : place + copy.num_bytes] == matrix.tobytes()
    layout, digests = read_records(path)
    assert layout == LAYOUT
    for record in LAYOUT.records():
        assert digests[record] == digest(record, matrices_of(record)) != 0


def test_matrices_of_a_record_lie_together(path: Path) -> None:
    first, second = LAYOUT.copies(1, 0, 0)
    assert first is not None
    assert second is not None
    assert second.offset == first.offset + PAGE_BYTES
    assert first.stride_bytes == 2 * PAGE_BYTES
    assert LAYOUT.copies(0, 0, 0)[1] is None


def test_an_interrupted_file_goes_on(path: Path) -> None:
    records = list(LAYOUT.records())
    with RecordFile(path, LAYOUT) as file:
        assert file.missing() == records
        for record in records[:4]:
            file.write(record, matrices_of(record))
    with RecordFile(path, LAYOUT) as file:
        assert file.missing() == records[4:]
        assert list(file.drop_damaged()) == [(record, True) for record in records[:4]]
    assert list_low_files(path.parent)[0].share == pytest.approx(4 / 10)


@pytest.mark.parametrize("at", [0, 4999])
def test_a_changed_byte_is_found(path: Path, at: int) -> None:
    filled(path).close()
    record = Record(0, 0, 1)
    copy = LAYOUT.copies(0, 0, 0)[0]
    assert copy is not None
    with path.open("r+b") as raw:
        raw.seek(copy.place(1) + at)
        old = raw.read(1)
        raw.seek(-1, os.SEEK_CUR)
        raw.write(bytes([old[0] ^ 0x10]))
    with RecordFile(path, LAYOUT) as file:
        assert [each for each, whole in file.drop_damaged() if not whole] == [record]
        assert file.missing() == [record]
        file.write(record, matrices_of(record))
        assert all(whole for _, whole in file.drop_damaged())


def test_records_of_two_experts_cannot_be_swapped() -> None:
    same = [np.zeros(5000, np.uint8)]
    assert digest(Record(0, 0, 0), same) != digest(Record(0, 0, 1), same)
    assert digest(Record(0, 0, 0), same) != digest(Record(0, 1, 0), same)
    assert digest(Record(0, 0, 0), same) != digest(Record(1, 0, 0), same)


def test_a_digest_is_that_of_the_bytes_in_whatever_pieces() -> None:
    (whole,) = matrices_of(Record(0, 0, 2))
    pieces = [whole[:70], whole[70:71], whole[71:]]
    assert digest(Record(0, 0, 2), pieces) == digest(Record(0, 0, 2), [whole])


def test_damaged_records_are_given_up(path: Path) -> None:
    filled(path).close()
    give_up_records(path, [Record(0, 1, 1), Record(0, 0, 2)])
    _, digests = read_records(path)
    assert digests[0, 1, 1] == digests[0, 0, 2] == 0
    assert np.count_nonzero(digests) == 8


def test_another_layout_begins_anew_and_leaves_the_old_file_to_its_readers(path: Path) -> None:
    filled(path).close()
    other = replace(LAYOUT, identity="q2_K weighted")
    with path.open("rb") as reader:
        with RecordFile(path, other) as file:
            assert len(file.missing()) == 10
        assert Layout.read(path) == other
        assert reader.read(len(LAYOUT.to_bytes())) == LAYOUT.to_bytes()


def test_one_process_writes_and_nobody_removes_the_file_meanwhile(path: Path) -> None:
    file = filled(path)
    with pytest.raises(StorageError, match="another process prepares low copies"):
        RecordFile(path, LAYOUT)
    assert remove_trunks(path.parent) == 0
    assert path.exists()
    file.close()
    with locked(path):
        pass
    assert remove_trunks(path.parent) > 0
    assert not path.exists()


@pytest.mark.parametrize("keep", [0, 10, 500, -1])
def test_a_cut_file_is_no_file_and_is_made_again(path: Path, keep: int) -> None:
    filled(path).close()
    length = keep if keep >= 0 else LAYOUT.num_bytes - 1
    os.truncate(path, length)
    with pytest.raises(StorageError):
        read_records(path)
    assert list_low_files(path.parent)[0].source == "damaged"
    with RecordFile(path, LAYOUT) as file:
        assert all(whole for _, whole in file.drop_damaged()) or keep == -1


def test_a_changed_layout_is_damage(path: Path) -> None:
    filled(path).close()
    with path.open("r+b") as raw:
        raw.seek(60)
        raw.write(b"Q")
    with pytest.raises(StorageError, match="its layout was changed"):
        read_records(path)


WRITE_FOR_EVER = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from test_records import LAYOUT, RecordFile, matrices_of
file = RecordFile(Path(sys.argv[1]), LAYOUT)
print("begun", flush=True)
while True:
    for record in LAYOUT.records():
        file.write(record, matrices_of(record))
"""


def test_a_killed_writer_leaves_whole_records(path: Path) -> None:
    command = [sys.executable, "-c", WRITE_FOR_EVER, str(path), str(Path(__file__).parent)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"begun\n"
        process.send_signal(signal.SIGKILL)
    with RecordFile(path, LAYOUT) as file:
        found = list(file.drop_damaged())
        assert all(whole for _, whole in found)
        assert len(found) + len(file.missing()) == 10
