"""A model file with ranges that were never written is distinguished from one with zeros."""

import os
import sys
from pathlib import Path

import numpy as np
import pytest
from gguf import GGUFReader, GGUFWriter

from haversack.devices.errors import ModelFileError
from haversack.quant.gguf import hole_in, read_geometry

MIB = 1024 * 1024

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the system tells holes")


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """Write 40 MiB in two tensors without holes."""
    writer = GGUFWriter(tmp_path / "model.gguf", "tiny")
    for name in ("token_embd.weight", "blk.0.attn_q.weight"):
        writer.add_tensor(name, np.full((5, MIB), 0.5, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return tmp_path / "model.gguf"


def leave_out(model: Path, start: int, num_bytes: int) -> None:
    """Write the file again without some bytes, as a download that reserves its space does."""
    step_bytes, data = 4096, model.read_bytes()
    zeros = bytes(step_bytes)
    data = data[:start] + bytes(num_bytes) + data[start + num_bytes :]
    model.unlink()
    with model.open("wb") as file:
        os.truncate(file.fileno(), len(data))
        for place in range(0, len(data), step_bytes):
            piece = data[place : place + step_bytes]
            if piece != zeros[: len(piece)]:
                os.pwrite(file.fileno(), piece, place)


def offset_of(model: Path, name: str) -> int:
    return int(next(t.data_offset for t in GGUFReader(model).tensors if t.name == name))


@pytest.mark.parametrize(
    ("start", "num_bytes", "tensor"),
    [
        (MIB, 16 * MIB, "token_embd.weight"),
        (15 * MIB, 20 * MIB, "token_embd.weight"),  # over both
        (24 * MIB, 16 * MIB + 4096, "blk.0.attn_q.weight"),  # to the end
    ],
)
def test_a_large_hole_is_refused(start: int, num_bytes: int, tensor: str, model: Path) -> None:
    leave_out(model, start, num_bytes)
    end = min(start + num_bytes, model.stat().st_size)
    with pytest.raises(ModelFileError) as refused:
        read_geometry(model)
    assert f"bytes {start} to {end}, from {tensor} on" in str(refused.value)
    assert "get the file again" in str(refused.value)
    assert "cp --sparse=never" in str(refused.value)


def test_zeros_that_were_written_are_no_hole(model: Path) -> None:
    with model.open("r+b") as file:
        os.pwrite(file.fileno(), bytes(18 * MIB), MIB)
    assert hole_in(read_geometry(model)) is None


def test_a_small_hole_may_be_meant(model: Path) -> None:
    leave_out(model, 3 * MIB, MIB)
    hole = hole_in(read_geometry(model))
    assert hole == (model, 3 * MIB, 4 * MIB, "token_embd.weight")
    assert f"a hole of 1.0 MiB, bytes {3 * MIB} to {4 * MIB}, from token_embd" in str(hole)


def test_a_hole_of_a_page_is_nobodys(model: Path) -> None:
    leave_out(model, 30 * MIB, 4096)
    assert hole_in(read_geometry(model)) is None


def test_the_largest_of_several_is_told(model: Path) -> None:
    leave_out(model, 3 * MIB, MIB)
    leave_out(model, 25 * MIB, 2 * MIB)
    leave_out(model, 35 * MIB, MIB)
    hole = hole_in(read_geometry(model))
    assert hole is not None and hole.start == 25 * MIB


def test_a_hole_of_any_part_counts(tmp_path: Path) -> None:
    parts = [tmp_path / f"m-0000{number}-of-00002.gguf" for number in (1, 2)]
    for number, part in enumerate(parts):
        writer = GGUFWriter(part, "tiny")
        writer.add_uint16("split.no", number)
        writer.add_uint16("split.count", 2)
        writer.add_tensor(f"blk.{number}.attn_q.weight", np.full((5, MIB), 0.5, np.float32))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
    assert read_geometry(parts[0]).paths == tuple(parts)
    leave_out(parts[1], 2 * MIB, 17 * MIB)
    with pytest.raises(ModelFileError, match=r"m-00002-of-00002\.gguf has a hole of 17\.0 MiB"):
        read_geometry(parts[0])
