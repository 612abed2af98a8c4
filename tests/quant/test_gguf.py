"""Where the experts of a model file lie, compared with what the `gguf` package reads there."""

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGUFReader, GGUFWriter

from haversack.devices.errors import ModelFileError
from haversack.quant.blocks import block_type
from haversack.quant.gguf import ExpertMatrix, ModelGeometry, part_paths, read_geometry
from haversack.tools.models.architectures import ARCHITECTURES
from haversack.tools.models.synth import TinyLayout, TinyShape, write_tiny

SMALL = TinyShape(num_hidden_layers=3, num_experts=4, vocab_size=64)
ODD = TinyShape(2, num_experts=5, num_experts_per_tok=3, hidden_size=128, moe_intermediate_size=96)
ROUTED = re.compile(r"blk\.\d+\.ffn_(gate|up|down|gate_up)_exps\.weight")


def matrices(geometry: ModelGeometry) -> dict[str, ExpertMatrix]:
    return {matrix.name: matrix for layer in geometry.layers for matrix in layer.matrices}


def kinds(geometry: ModelGeometry) -> list[tuple[str, ...]]:
    return [tuple(matrix.kind for matrix in layer.matrices) for layer in geometry.layers]


def expert_bytes(geometry: ModelGeometry, matrix: ExpertMatrix, expert: int) -> bytes:
    """Return an expert's bytes, read where the geometry places them."""
    with geometry.paths[matrix.part].open("rb") as file:
        file.seek(matrix.offset + expert * matrix.expert_bytes)
        return file.read(matrix.expert_bytes)


def by_the_package(*paths: Path) -> dict[str, Any]:
    """Return the tensors of the files by name, as the `gguf` package reads them."""
    return {tensor.name: tensor for path in paths for tensor in GGUFReader(path).tensors}


def check_against_the_package(geometry: ModelGeometry) -> None:
    tensors = by_the_package(*geometry.paths)
    found = matrices(geometry)
    assert set(found) == {name for name in tensors if ROUTED.fullmatch(name)}
    for name, matrix in found.items():
        tensor = tensors[name]
        assert (matrix.row_elements, matrix.num_rows, matrix.num_experts) == tuple(tensor.shape)
        assert (matrix.type_id, matrix.offset) == (tensor.tensor_type, tensor.data_offset)
        assert matrix.expert_bytes * matrix.num_experts == tensor.n_bytes
        (copy,) = matrix.copies
        place = (matrix.part, matrix.offset, matrix.expert_bytes)
        assert copy.stride_bytes == copy.num_bytes
        assert (copy.level, copy.type_id) == (0, matrix.type_id)
        assert (copy.part, copy.offset, copy.num_bytes) == place
        for expert in (0, 1, matrix.num_experts - 1):
            assert expert_bytes(geometry, matrix, expert) == tensor.data[expert].tobytes()
    trunk = [int(tensor.n_bytes) for name, tensor in tensors.items() if name not in found]
    aligned_bytes = sum(num_bytes + -num_bytes % 32 for num_bytes in trunk)
    assert aligned_bytes <= geometry.trunk_bytes <= aligned_bytes + 32 * len(trunk)


# --------------------------------------------------------------------- models
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_architecture(architecture: str, tmp_path: Path) -> None:
    (path,) = write_tiny(architecture, tmp_path / "tiny.gguf", shape=SMALL)
    geometry = read_geometry(path)
    assert geometry.paths == (path,)
    assert geometry.path == path
    assert geometry.architecture == architecture
    assert geometry.num_experts_per_tok == 2
    assert {layer.num_experts for layer in geometry.layers} == {4}
    check_against_the_package(geometry)


def test_matrices_come_in_the_order_a_layer_computes_them(tmp_path: Path) -> None:
    (path,) = write_tiny("qwen3moe", tmp_path / "tiny.gguf", shape=SMALL)
    geometry = read_geometry(path)
    assert [layer.layer for layer in geometry.layers] == [0, 1, 2]
    assert kinds(geometry) == [("gate", "up", "down")] * 3


def test_gate_and_up_may_be_one_tensor(tmp_path: Path) -> None:
    layout = TinyLayout(fused=True)
    (path,) = write_tiny("deepseek2", tmp_path / "tiny.gguf", shape=SMALL, layout=layout)
    geometry = read_geometry(path)
    assert kinds(geometry) == [("gate_up", "down")] * 2
    gate_up, down = geometry.layers[0].matrices
    assert (gate_up.row_elements, gate_up.num_rows) == (256, 512)
    assert (down.row_elements, down.num_rows) == (256, 256)
    check_against_the_package(geometry)


def test_leading_dense_layers_and_shared_experts_belong_to_the_trunk(tmp_path: Path) -> None:
    (path,) = write_tiny("deepseek2", tmp_path / "tiny.gguf", shape=SMALL)
    geometry = read_geometry(path)
    assert [layer.layer for layer in geometry.layers] == [1, 2]
    tensors = by_the_package(path)
    assert "blk.0.ffn_down.weight" in tensors
    assert "blk.1.ffn_down_shexp.weight" in tensors
    assert not any("shexp" in name or name.startswith("blk.0.") for name in matrices(geometry))


def test_biases_and_scales_of_experts_belong_to_the_trunk(tmp_path: Path) -> None:
    (with_biases,) = write_tiny("gpt-oss", tmp_path / "biases.gguf", shape=SMALL)
    (with_scales,) = write_tiny("gemma4", tmp_path / "scales.gguf", shape=SMALL)
    for path, name in (
        (with_biases, "blk.0.ffn_down_exps.bias"),
        (with_scales, "blk.0.ffn_down_exps.scale"),
    ):
        geometry = read_geometry(path)
        assert name in by_the_package(path)
        assert name not in matrices(geometry)
        assert len(geometry.layers) == 3


def test_types_may_differ_between_matrices_and_layers(tmp_path: Path) -> None:
    layout = TinyLayout(down_type=("Q6_K", "Q4_K"))
    (path,) = write_tiny(
        "llama", tmp_path / "tiny.gguf", expert_type="Q4_K", shape=SMALL, layout=layout
    )
    geometry = read_geometry(path)
    names = [
        tuple(block_type(matrix.type_id).name for matrix in layer.matrices)
        for layer in geometry.layers
    ]
    assert names == [("q4_K", "q4_K", down) for down in ("q6_K", "q4_K", "q6_K")]
    a_row = {name: block_type(i).row_bytes(256) for name, i in (("q4_K", 12), ("q6_K", 14))}
    assert [layer.expert_bytes for layer in geometry.layers] == [
        256 * sum(a_row[name] for name in layer) for layer in names
    ]
    assert geometry.expert_bytes == 4 * sum(layer.expert_bytes for layer in geometry.layers)
    check_against_the_package(geometry)


def test_experts_need_not_be_whole_pages(tmp_path: Path) -> None:
    (path,) = write_tiny("olmoe", tmp_path / "tiny.gguf", expert_type="Q8_0", shape=ODD)
    geometry = read_geometry(path)
    gate, _, down = geometry.layers[1].matrices
    assert gate.expert_bytes == 96 * 4 * 34
    assert down.expert_bytes == 128 * 3 * 34
    assert geometry.num_experts_per_tok == 3
    check_against_the_package(geometry)


def test_any_part_names_a_split_model(tmp_path: Path) -> None:
    (whole,) = write_tiny("qwen3moe", tmp_path / "whole.gguf", shape=SMALL)
    layout = TinyLayout(num_splits=3)
    parts = write_tiny("qwen3moe", tmp_path / "split.gguf", shape=SMALL, layout=layout)
    geometry = read_geometry(parts[1])
    assert geometry.paths == tuple(parts)
    assert geometry.path == parts[0]
    assert [read_geometry(part) for part in parts] == [geometry] * 3
    check_against_the_package(geometry)
    one = read_geometry(whole)
    assert geometry.trunk_bytes == one.trunk_bytes
    assert {matrix.part for matrix in matrices(geometry).values()} == {0, 1, 2}
    for name, matrix in matrices(one).items():
        for expert in range(4):
            assert expert_bytes(geometry, matrices(geometry)[name], expert) == expert_bytes(
                one, matrix, expert
            )


def test_a_dense_model_has_no_layers_of_experts(tmp_path: Path) -> None:
    geometry = read_geometry(hand_made(tmp_path / "dense.gguf", ["blk.0.ffn_down.weight"]))
    assert geometry.layers == ()
    assert geometry.num_experts_per_tok == geometry.expert_bytes == 0
    assert geometry.trunk_bytes >= 4 * 2 * 8 * 4


def test_a_number_of_used_experts_for_each_layer(tmp_path: Path) -> None:
    path = hand_made(tmp_path / "model.gguf", used=[0, 1, 3, 2])
    assert read_geometry(path).num_experts_per_tok == 3


def test_a_name_like_an_experts_is_not_enough(tmp_path: Path) -> None:
    names = ["blk.0.ffn_norm_exps.weight", "blk.0.ffn_gate_exps.weight.old", "ffn_up_exps.weight"]
    names += ["blk.0.mtp.ffn_up_exps.weight", "blk.x.ffn_up_exps.weight", "blk.0.ffn_up_exps.bias"]
    geometry = read_geometry(hand_made(tmp_path / "model.gguf", names, shape=(3,)))
    assert geometry.layers == ()
    assert geometry.trunk_bytes >= 6 * 32  # each takes 12 bytes, and starts at a multiple of 32


def test_layers_that_only_draft_are_left_out(tmp_path: Path) -> None:
    names = [f"blk.{layer}.{kind}" for layer in range(4) for kind in ("ffn_up_exps.weight", "norm")]
    keys = {"tiny.block_count": 4, "tiny.nextn_predict_layers": 1}
    without = read_geometry(hand_made(tmp_path / "without.gguf", names[:6]))
    geometry = read_geometry(hand_made(tmp_path / "model.gguf", names, keys=keys))
    assert [layer.layer for layer in geometry.layers] == [0, 1, 2]
    assert [matrix.name for matrix in geometry.unused] == ["blk.3.ffn_up_exps.weight"]
    assert geometry.expert_bytes == without.expert_bytes
    assert geometry.trunk_bytes == without.trunk_bytes
    assert without.unused == ()


# ------------------------------------------------------------------ bad input
def hand_made(
    path: Path,
    names: list[str] | None = None,
    *,
    count: int | None = 4,
    used: int | str | list[int] | None = 2,
    shape: tuple[int, ...] = (4, 2, 8),
    keys: Mapping[str, int] | None = None,
) -> Path:
    """Write a GGUF with only what a test needs; it is no model that could run."""
    writer = GGUFWriter(path, "tiny")
    if count is not None:
        writer.add_uint32("tiny.expert_count", count)
    if isinstance(used, str):
        writer.add_string("tiny.expert_used_count", used)
    elif isinstance(used, list):
        writer.add_array("tiny.expert_used_count", used)
    elif used is not None:
        writer.add_uint32("tiny.expert_used_count", used)
    for key, value in (keys or {}).items():
        writer.add_uint32(key, value)
    for name in ["blk.0.ffn_up_exps.weight"] if names is None else names:
        writer.add_tensor(name, np.ones(shape, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def refused(path: Path, message: str) -> None:
    with pytest.raises(ModelFileError, match=message) as caught:
        read_geometry(path)
    assert path.name in str(caught.value)


def test_a_path_that_is_no_file(tmp_path: Path) -> None:
    refused(tmp_path / "missing.gguf", r"does not exist: give the path of a GGUF file")
    refused(tmp_path, r"is a folder: give the path of a GGUF file")


@pytest.mark.parametrize(
    ("content", "found", "advice"),
    [
        (b"", "failed to read magic", "may be unfinished or damaged"),
        (b"GG", "failed to read magic", "may be unfinished or damaged"),
        (b"PK\x03\x04 a zip file", "invalid magic characters: 'PK", "give a GGUF file"),
        (b"GGUF" + bytes(4), "bad GGUF version: 0", "may be unfinished or damaged"),
        (b"GGUF\x01\0\0\0" + bytes(16), "GGUFv1 is no longer supported", "of a version that"),
        (b"GGUF\0\0\0\x03" + bytes(16), "the host and model endianness", "of a version that"),
        (b"GGUF\x03\0\0\0" + b"\xff" * 16, "number of tensors is -1", "may be unfinished"),
    ],
)
def test_a_file_that_is_no_gguf(content: bytes, found: str, advice: str, tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(content)
    refused(path, f"not a readable GGUF file: .*{found}.*; .*{advice}")


def test_a_truncated_file(tmp_path: Path) -> None:
    path = hand_made(tmp_path / "model.gguf")
    size = path.stat().st_size
    os.truncate(path, size - 1)
    refused(
        path, rf"is truncated: .*\({size} bytes\), the file has {size - 1}: .*download it again"
    )
    for cut in (size - 4 * 2 * 8 * 4 - 64, 100, 30):  # in the tensors' table, in the keys
        os.truncate(path, cut)
        refused(path, "failed to read")


def test_a_missing_part(tmp_path: Path) -> None:
    layout = TinyLayout(num_splits=4)
    parts = write_tiny("qwen3moe", tmp_path / "split.gguf", shape=ODD, layout=layout)
    parts[1].unlink()
    parts[3].unlink()
    message = (
        r"is one of 4 parts, of which 2 are missing"
        rf" \({parts[1].name}, {parts[3].name}\): put all parts into {tmp_path}"
    )
    refused(parts[0], message)
    refused(parts[2], message)
    refused(parts[1], "does not exist")


def test_a_truncated_part(tmp_path: Path) -> None:
    layout = TinyLayout(num_splits=2)
    parts = write_tiny("qwen3moe", tmp_path / "split.gguf", shape=ODD, layout=layout)
    os.truncate(parts[1], parts[1].stat().st_size // 2)
    with pytest.raises(ModelFileError, match=f"{parts[1].name} is truncated"):
        read_geometry(parts[0])


def test_a_part_that_is_no_gguf(tmp_path: Path) -> None:
    layout = TinyLayout(num_splits=2)
    parts = write_tiny("qwen3moe", tmp_path / "split.gguf", shape=ODD, layout=layout)
    parts[1].write_bytes(b"an error page of some server")
    with pytest.raises(ModelFileError, match=f"{parts[1].name} is not a readable GGUF file"):
        read_geometry(parts[0])


def test_renamed_and_mixed_parts(tmp_path: Path) -> None:
    layout = TinyLayout(num_splits=2)
    first, second = write_tiny("qwen3moe", tmp_path / "split.gguf", shape=ODD, layout=layout)
    alone = first.with_name("model.gguf")
    alone.write_bytes(first.read_bytes())
    refused(alone, "has split.no 0 and split.count 2, its name means 0 and 1: give the parts the")
    second.write_bytes(first.read_bytes())
    with pytest.raises(ModelFileError, match=r"has split.no 0 .* its name means 1 and 2"):
        read_geometry(first)


def test_a_part_of_another_model(tmp_path: Path) -> None:
    """llama.cpp ends the process at a tensor that occurs twice, so we refuse it before."""
    halves, thirds = (
        write_tiny("qwen3moe", tmp_path / f"{n}.gguf", shape=ODD, layout=TinyLayout(num_splits=n))
        for n in (2, 3)
    )
    writer = GGUFWriter(halves[1], "tiny")
    writer.add_uint16("split.no", 1)
    writer.add_uint16("split.count", 2)
    writer.add_tensor(GGUFReader(thirds[0]).tensors[0].name, np.ones(8, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(
        ModelFileError, match=r"holds \S+, as another part does.*may be of different.*copy"
    ):
        read_geometry(halves[0])


@pytest.mark.parametrize(
    "name", ["a-00001-of-00000.gguf", "a-00003-of-00002.gguf", "a-1-of-2.gguf"]
)
def test_a_name_that_only_looks_like_a_part(name: str, tmp_path: Path) -> None:
    path = hand_made(tmp_path / name)
    assert part_paths(path) == (path,)
    assert read_geometry(path).paths == (path,)


def test_a_file_without_an_architecture(tmp_path: Path) -> None:
    path = hand_made(tmp_path / "model.gguf")
    data = path.read_bytes()
    path.write_bytes(data.replace(b"general.architecture", b"general.architekture", 1))
    refused(path, "no key general.architecture, so nothing tells what model it is: give another")


@pytest.mark.parametrize(
    ("count", "used"), [(4, None), (4, 0), (4, 5), (4, "two"), (4, [0, 0]), (None, 2), (4, [])]
)
def test_experts_without_a_usable_number_of_them(
    count: int | None, used: int | str | list[int] | None, tmp_path: Path
) -> None:
    path = hand_made(tmp_path / "model.gguf", count=count, used=used)
    refused(path, rf"expert_count is {count} .*expert_used_count .*: convert or download")


def test_empty_experts(tmp_path: Path) -> None:
    path = hand_made(tmp_path / "model.gguf", shape=(0, 2, 8))
    with pytest.raises(
        ModelFileError, match=r"blk.0.ffn_up_exps.weight is empty, .*\(8, 2, 0, 1\)"
    ):
        read_geometry(path)


def test_a_tensor_whose_name_is_no_text(tmp_path: Path) -> None:
    path = hand_made(tmp_path / "model.gguf", ["blk.0.ffn_up.weight"])
    path.write_bytes(path.read_bytes().replace(b"blk.0.ffn_up.", b"blk.0.\xff\xfe\xfd_up."))
    refused(path, "holds a tensor named .*which is no text: the file may be damaged.*written so")


def test_names_of_files_may_be_any_bytes(tmp_path: Path) -> None:
    path = tmp_path / os.fsdecode(b"caf\xe9 \xf0\x9f\x8e\x92.gguf")
    geometry = read_geometry(hand_made(path))
    assert geometry.path == path
