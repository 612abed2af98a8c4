"""The importance of columns: imatrix files of both forms, and sums that are collected."""

import struct
from pathlib import Path

import numpy as np
import pytest
from gguf import GGUFWriter

from haversack.devices.conversion import Floats
from haversack.devices.errors import ModelFileError
from haversack.quant.gguf import ExpertMatrix
from haversack.quant.importance import ActivationSums, Importance, read_router_weights

NAME = "blk.0.ffn_up_exps.weight"
E, K = 3, 64
MATRIX = ExpertMatrix(NAME, "up", 8, K, 5, E, 0, 0, 5 * K // 32 * 34)
MEANS = np.random.default_rng(0).random((E, K), np.float32) + np.float32(0.1)
COUNTS = np.array([7, 0, 2], np.float32)


def write_gguf(path: Path, sums: np.ndarray) -> None:
    writer = GGUFWriter(path, "")
    writer.add_type("imatrix")
    writer.add_tensor(NAME + ".in_sum2", sums.astype(np.float32))
    writer.add_tensor(NAME + ".counts", COUNTS[:, None])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def write_dat(path: Path, means: np.ndarray, calls: int = 9) -> None:
    name = NAME.encode()
    head = struct.pack("<ii", 1, len(name)) + name + struct.pack("<ii", calls, means.size)
    path.write_bytes(head + (means * calls).astype(np.float32).tobytes() + struct.pack("<i", 9))


def means_of(importance: Importance, expert: int) -> Floats:
    found = importance.of(MATRIX, expert)
    assert found is not None
    return found


def test_an_imatrix_in_gguf(tmp_path: Path) -> None:
    write_gguf(tmp_path / "i.gguf", MEANS * COUNTS[:, None])
    read = Importance.read(tmp_path / "i.gguf")
    read.check(MATRIX)
    np.testing.assert_allclose(means_of(read, 0), MEANS[0], rtol=1e-6)
    np.testing.assert_allclose(means_of(read, 2), MEANS[2], rtol=1e-6)
    # the text never used expert 1
    np.testing.assert_allclose(means_of(read, 1), MEANS[[0, 2]].mean(axis=0), rtol=1e-6)


def test_an_imatrix_of_the_older_form(tmp_path: Path) -> None:
    write_dat(tmp_path / "i.dat", MEANS)
    read = Importance.read(tmp_path / "i.dat")
    read.check(MATRIX)
    for expert in range(E):
        np.testing.assert_allclose(means_of(read, expert), MEANS[expert], rtol=1e-6)


def test_another_tensor_has_none(tmp_path: Path) -> None:
    write_dat(tmp_path / "i.dat", MEANS)
    other = ExpertMatrix("blk.1.ffn_up_exps.weight", "up", 8, K, 5, E, 0, 0, 340)
    assert Importance.read(tmp_path / "i.dat").of(other, 0) is None


def test_numbers_of_another_shape_are_refused(tmp_path: Path) -> None:
    write_dat(tmp_path / "i.dat", MEANS[:2])
    with pytest.raises(ModelFileError, match=r"has 128 numbers for .* 3 experts of 64 columns"):
        Importance.read(tmp_path / "i.dat").check(MATRIX)


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"", "it does not hold names with their numbers; give one that llama.cpp's imatrix wrote"),
        (b"GGUF", "GGUF"),
        (b"some text, no imatrix", "a name of 2019914784 bytes"),
        (struct.pack("<ii", 1, 1 << 30), "a name of 1073741824 bytes"),
        (struct.pack("<ii", 1, 1) + b"\xff", "it does not hold names"),
        (struct.pack("<i", 0), "it names no tensors"),
    ],
)
def test_what_is_no_imatrix_is_refused(tmp_path: Path, data: bytes, why: str) -> None:
    (tmp_path / "x").write_bytes(data)
    with pytest.raises(ModelFileError, match=why):
        Importance.read(tmp_path / "x")
    with pytest.raises(ModelFileError):
        Importance.read(tmp_path / "missing")


def test_numbers_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    write_dat(tmp_path / "i.dat", np.where(MEANS > 0.5, np.nan, MEANS))
    with pytest.raises(ModelFileError, match="not finite"):
        Importance.read(tmp_path / "i.dat")


def test_sums_are_means_of_squares_by_expert(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    x, ids = rng.standard_normal((50, K), np.float32), rng.integers(0, E, (50, 2), np.int32)
    sums = ActivationSums(tmp_path / "sums", "me")
    sums.add(NAME, E, ids[:30], x[:30])
    sums.num_tokens = 30
    sums.save()
    sums = ActivationSums(tmp_path / "sums", "me")  # goes on where it was
    assert (sums.num_tokens, sums.is_whole) == (30, False)
    sums.add(NAME, E, ids[30:], x[30:])
    for expert in range(E):
        rows = np.concatenate([x[ids[:, 0] == expert], x[ids[:, 1] == expert]])
        found = means_of(sums.importance(), expert)
        np.testing.assert_allclose(found, (rows**2).mean(axis=0), rtol=1e-4)


def test_sums_of_another_text_begin_anew(tmp_path: Path) -> None:
    sums = ActivationSums(tmp_path / "sums", "me")
    sums.num_tokens = 5
    sums.save()
    assert ActivationSums(tmp_path / "sums", "you").num_tokens == 0
    (tmp_path / "sums").write_bytes(b"PK damaged")
    assert ActivationSums(tmp_path / "sums", "me").num_tokens == 0


def test_a_sample_of_routers_weights_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "sums"
    sums = ActivationSums(path, "a text")
    weights = np.random.default_rng(0).random((512, 4), np.float32)
    sums.add_weights(weights)
    sums.add_weights(weights[:5])
    sums.save()
    assert read_router_weights(path) is None  # the text has not ended
    resumed = ActivationSums(path, "a text")
    resumed.add_weights(weights[:33])
    resumed.is_whole = True
    resumed.save()
    found = read_router_weights(path)
    assert found is not None
    np.testing.assert_array_equal(found[:37], np.concatenate([weights[::16], weights[:5]]))
    assert len(found) == 37 + 17
    path.write_bytes(b"nonsense")
    assert read_router_weights(path) is None
    assert read_router_weights(tmp_path / "missing") is None
