"""A damaged trunk is noticed, wherever the damage is."""

import os
import random
import shutil
from pathlib import Path

import pytest

from haversack.devices.errors import DamagedTrunkError
from haversack.devices.ggml import GgufHeader
from haversack.quant.gguf import ModelGeometry, read_geometry
from haversack.quant.seal import compare_file, is_whole
from haversack.quant.trunk import ensure_trunk, hole_names
from haversack.tools.models.synth import TinyShape, write_tiny

SHAPE = TinyShape(num_hidden_layers=2, num_experts=4, hidden_size=128, vocab_size=64)
END_BYTES = 40


@pytest.fixture(scope="module")
def geometry(tmp_path_factory: pytest.TempPathFactory) -> ModelGeometry:
    folder = tmp_path_factory.mktemp("model")
    return read_geometry(write_tiny("qwen3moe", folder / "model.gguf", shape=SHAPE)[0])


@pytest.fixture
def trunk(geometry: ModelGeometry, tmp_path: Path) -> Path:
    return ensure_trunk(geometry, tmp_path / "trunks")


def data_places(trunk: Path, geometry: ModelGeometry) -> list[tuple[int, int]]:
    """Return start and end of the header, of the tensors with data and of the seal."""
    with GgufHeader(trunk) as header:
        filled = [t for t in header.tensors if t.name not in hole_names(geometry)]
        tensors = [(t.offset, t.offset + t.num_bytes) for t in filled]
        size, seal_bytes = trunk.stat().st_size, END_BYTES + 8 * len(tensors)
        return [(0, header.data_offset), *tensors, (size - seal_bytes, size)]


def test_a_trunk_as_it_was_written(trunk: Path, geometry: ModelGeometry) -> None:
    assert is_whole(trunk, hole_names(geometry))


def test_one_flipped_bit_anywhere(trunk: Path, geometry: ModelGeometry) -> None:
    rng, holes = random.Random(0), hole_names(geometry)
    for start, end in data_places(trunk, geometry):
        for place in (start, end - 1, *(rng.randrange(start, end) for _ in range(5))):
            flip(trunk, place, bit := 1 << rng.randrange(8))
            assert not is_whole(trunk, holes), f"byte {place} of {start} to {end}"
            flip(trunk, place, bit)
    assert is_whole(trunk, holes)


def flip(path: Path, place: int, bit: int) -> None:
    with path.open("r+b") as file:
        old = os.pread(file.fileno(), 1, place)[0]
        os.pwrite(file.fileno(), bytes([old ^ bit]), place)


def test_a_trunk_of_another_length(trunk: Path, geometry: ModelGeometry) -> None:
    whole = trunk.read_bytes()
    rng = random.Random(1)
    for length in (0, 1, 100, len(whole) - 1, *(rng.randrange(len(whole)) for _ in range(20))):
        trunk.write_bytes(whole[:length])
        assert not is_whole(trunk, hole_names(geometry)), length
    trunk.write_bytes(whole + b"\0")
    assert not is_whole(trunk, hole_names(geometry))


def test_a_trunk_with_zeros(trunk: Path, geometry: ModelGeometry) -> None:
    whole = trunk.read_bytes()
    for start, end in ((0.0, 0.1), (0.66, 1.0), (0.3, 0.35), (0.0, 1.0)):
        first, last = int(start * len(whole)), int(end * len(whole))
        trunk.write_bytes(whole[:first] + bytes(last - first) + whole[last:])
        assert not is_whole(trunk, hole_names(geometry)), (start, end)


def test_another_models_trunk_under_this_name(
    trunk: Path, geometry: ModelGeometry, tmp_path: Path
) -> None:
    (path,) = write_tiny("qwen3moe", tmp_path / "other.gguf", seed=1, shape=SHAPE)
    other_geometry = read_geometry(path)
    other = ensure_trunk(other_geometry, trunk.parent)
    assert is_whole(other, hole_names(other_geometry))
    shutil.copy(other, trunk)
    assert not is_whole(trunk, hole_names(geometry))


def test_what_is_wrong_is_said(trunk: Path, geometry: ModelGeometry) -> None:
    with GgufHeader(trunk) as header:
        offset = next(t.offset for t in header.tensors if t.name == "output_norm.weight")
    for spoil, words in (
        (lambda: flip(trunk, offset, 1), "output_norm.weight was changed"),
        (lambda: flip(trunk, 10, 1), "its header or its end was changed, or is another model's"),
        (lambda: os.truncate(trunk, 100_000), "its end is missing"),
        (trunk.unlink, "No such file"),
    ):
        spoil()
        with pytest.raises(DamagedTrunkError, match=f"^the trunk file {trunk} is damaged: {words}"):
            compare_file(trunk, hole_names(geometry))


@pytest.mark.parametrize("place", [16, 23, 24, 31])
def test_numbers_of_the_seal_that_make_no_sense(
    place: int, trunk: Path, geometry: ModelGeometry
) -> None:
    """The places are the lowest and highest byte of the number of tensors and of the header's
    length."""
    flip(trunk, trunk.stat().st_size - END_BYTES + place, 0x80)
    assert not is_whole(trunk, hole_names(geometry))
