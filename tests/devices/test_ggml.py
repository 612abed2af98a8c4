"""libggml in Python: headers of files, nodes of graphs, and products with llama.cpp's own bits.

Axis letters: K elements of a row, M rows of an expert's matrix, E experts, T tokens, N experts
each token uses.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from gguf import GGUFReader, GGUFWriter

from haversack.devices import _native as native
from haversack.devices.errors import ModelFileError
from haversack.devices.ggml import (
    F32,
    GgufHeader,
    GraphNode,
    merged_header,
    row_type,
    type_geometry,
)
from haversack.quant.blocks import BLOCK_TYPES

COMPUTE_FLAG = 16
I32 = 26
Floats = npt.NDArray[np.float32]


class Graph:
    """Tensors and one product of llama.cpp over our memory."""

    def __init__(self) -> None:
        self.memory = np.zeros(1 << 16, np.uint8)
        params = native.GgmlInitParams(len(self.memory), native.address_of(self.memory), True)
        self.context = native.ggml_init(params)
        self.kept: list[npt.NDArray[Any]] = []

    def tensor(self, type_id: int, shape: tuple[int, ...], data: npt.NDArray[Any]) -> int:
        """Make a tensor of `shape` (fastest axis first) whose values are `data`."""
        tensor: int = native.ggml_new_tensor_3d(self.context, type_id, *shape)
        native.Tensor.from_address(tensor).data = native.address_of(data)
        self.kept.append(data)
        return tensor

    def product(self, weights: int, rows: int, ids: int) -> GraphNode:
        """Make the MUL_MAT_ID node of these tensors."""
        address: int = native.ggml_mul_mat_id(self.context, weights, rows, ids)
        node = GraphNode(address)
        out = np.zeros(np.prod(node.shape), np.float32)
        tensor = native.Tensor.from_address(address)
        tensor.data, tensor.flags = native.address_of(out), COMPUTE_FLAG
        self.kept.append(out)
        return node

    def compute(self, node: GraphNode, num_threads: int = 1) -> Floats:
        """Compute the node's values, (T, N, M)."""
        backend = native.ggml_backend_cpu_init()
        native.ggml_backend_cpu_set_n_threads(backend, num_threads)
        graph = native.ggml_new_graph_custom(self.context, 16, False)
        native.ggml_graph_add_node(graph, node.address)
        assert native.ggml_backend_graph_compute(backend, graph) == 0
        native.ggml_backend_free(backend)
        return node.array(np.float32).copy()

    def close(self) -> None:
        native.ggml_free(self.context)


@pytest.fixture
def graph() -> Iterator[Graph]:
    made = Graph()
    yield made
    made.close()


# ---------------------------------------------------------------- block types
def test_geometry_of_types() -> None:
    assert type_geometry(F32) == ("f32", 1, 4)
    assert type_geometry(BLOCK_TYPES["Q4_K"]) == ("q4_K", 256, 144)
    assert type_geometry(4)[1] == 0  # a type that was removed


@pytest.mark.parametrize(
    ("weights", "rows"),
    [
        ("F32", "f32"), ("F16", "f16"), ("BF16", "bf16"), ("Q8_0", "q8_0"), ("Q4_0", "q8_0"),
        ("MXFP4", "q8_0"), ("Q4_K", "q8_K"), ("Q2_K", "q8_K"), ("IQ4_XS", "q8_K"),
    ],
)  # fmt: skip
def test_the_type_that_rows_take(weights: str, rows: str) -> None:
    assert type_geometry(row_type(BLOCK_TYPES[weights]))[0] == rows


# ---------------------------------------------------------------- graph nodes
def test_a_nodes_fields(graph: Graph) -> None:
    weights = graph.tensor(BLOCK_TYPES["Q8_0"], (64, 5, 3), np.zeros((3, 5, 68), np.uint8))
    rows = graph.tensor(F32, (64, 1, 7), np.zeros((7, 64), np.float32))
    ids = graph.tensor(I32, (2, 7, 1), np.zeros((7, 2), np.int32))
    node = graph.product(weights, rows, ids)
    assert node.shape == (5, 2, 7, 1)
    assert node.type_id == F32
    assert node.source(0).shape == (64, 5, 3, 1)
    assert node.source(0).type_id == BLOCK_TYPES["Q8_0"]
    assert [node.source(i).address for i in range(3)] == [weights, rows, ids]


def test_values_are_seen_where_they_lie(graph: Graph) -> None:
    values = np.arange(24, dtype=np.float32)
    tensor = graph.tensor(F32, (4, 3, 2), values)
    array = GraphNode(tensor).array(np.float32)
    assert (array == values.reshape(2, 3, 4)).all()
    array[1, 2, 3] = 99
    assert values[23] == 99
    # a view of the first two of four columns and of three rows, as the router's choice is one
    native.Tensor.from_address(tensor).ne[:2] = [2, 2]
    seen = GraphNode(tensor).array(np.float32)
    assert seen.tolist() == values.reshape(2, 3, 4)[:, :2, :2].tolist()


# ------------------------------------------------------------------- headers
@pytest.fixture
def two_files(tmp_path: Path) -> tuple[Path, Path]:
    """Two GGUF files with two tensors each, as parts of a model are."""
    rng = np.random.default_rng(0)
    for part in range(2):
        writer = GGUFWriter(tmp_path / f"{part}.gguf", "tiny")
        writer.add_uint16("split.no", part)
        if part == 0:
            writer.add_bool("a.bool", True)
            writer.add_int64("a.number", -(1 << 40))
            writer.add_float32("a.float", 0.5)
            writer.add_string("a.string", "naïve")
            writer.add_array("an.array", [3, 1, 2])
            writer.add_array("an.array.of.floats", [0.5, -1.0])
            writer.add_array("an.array.of.strings", ["a", "b"])
        for name in ("a", "b"):
            writer.add_tensor(f"{part}.{name}", rng.standard_normal((3, 64), np.float32))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
    return tmp_path / "0.gguf", tmp_path / "1.gguf"


def test_values_of_a_header(two_files: tuple[Path, Path]) -> None:
    with GgufHeader(two_files[0]) as header:
        assert header.value("general.architecture") == "tiny"
        assert header.value("a.bool") is True
        assert header.value("a.number") == -(1 << 40)
        assert header.value("a.float") == 0.5
        assert header.value("a.string") == "naïve"
        assert header.value("an.array") == [3, 1, 2]
        assert header.value("an.array.of.floats") == [0.5, -1.0]
        assert header.value("an.array.of.strings") is None  # nobody needs one
        assert header.value("no.such.key") is None


def test_the_tensors_of_a_header(two_files: tuple[Path, Path]) -> None:
    with GgufHeader(two_files[1]) as header:
        assert [tensor.name for tensor in header.tensors] == ["1.a", "1.b"]
        for tensor, known in zip(header.tensors, GGUFReader(two_files[1]).tensors, strict=True):
            assert (tensor.name, tensor.type_id) == (known.name, F32)
            assert tensor.shape == (64, 3, 1, 1)
            assert (tensor.offset, tensor.num_bytes) == (known.data_offset, known.n_bytes)
        assert header.data_offset == header.tensors[0].offset


def test_a_header_may_be_closed_twice(two_files: tuple[Path, Path]) -> None:
    header = GgufHeader(two_files[0])
    header.close()
    header.close()
    assert len(header.tensors) == 2  # what was read stays


def test_no_header(tmp_path: Path) -> None:
    with pytest.raises(
        ModelFileError, match=r"missing.gguf is not a readable GGUF file: .*No such"
    ):
        GgufHeader(tmp_path / "missing.gguf")


def test_headers_are_merged(two_files: tuple[Path, Path], tmp_path: Path) -> None:
    with GgufHeader(two_files[0]) as first, GgufHeader(two_files[1]) as second:
        q8_0 = BLOCK_TYPES["Q8_0"]
        header, offsets = merged_header([first, second], {"0.b": q8_0}, ["split.no", "no.such"])
        expected = {
            key: first.value(key) for key in ("general.architecture", "a.float", "an.array")
        }
    path = tmp_path / "merged.gguf"
    path.write_bytes(header + bytes(3 * 768 + 3 * 68 + 31))
    with GgufHeader(path) as merged:
        tensors = {tensor.name: tensor for tensor in merged.tensors}
        assert list(tensors) == ["0.a", "0.b", "1.a", "1.b"]
        assert {name: tensor.offset for name, tensor in tensors.items()} == offsets
        assert offsets["0.a"] == len(header)
        assert [t.type_id for t in tensors.values()] == [F32, q8_0, F32, F32]
        assert offsets["1.a"] - offsets["0.b"] == 224  # 3 rows of 68 bytes, and alignment
        assert {key: merged.value(key) for key in expected} == expected
        assert merged.value("split.no") is None
