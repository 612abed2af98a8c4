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
from haversack.devices.authoring import BLOCK_TYPES, quantize_rows
from haversack.devices.errors import ModelFileError
from haversack.devices.ggml import (
    F32,
    I32,
    NODE_NAME,
    NODE_OP,
    OP_MUL_MAT_ID,
    OP_NONE,
    GgufHeader,
    GraphNode,
    Product,
    ProductRunner,
    SlotIds,
    convert_rows,
    memory,
    merged_header,
    row_type,
    type_geometry,
)

COMPUTE_FLAG = 16
EXPERT_TYPES = "F32 F16 BF16 Q8_0 Q4_0 Q4_K Q6_K Q2_K MXFP4 IQ4_XS".split()
Floats = npt.NDArray[np.float32]


class Graph:
    """Tensors and one product of llama.cpp's, over memory of ours."""

    def __init__(self) -> None:
        self.memory = np.zeros(1 << 16, np.uint8)
        params = native.GgmlInitParams(len(self.memory), native.address_of(self.memory), True)
        self.context = native.ggml_init(params)
        self.kept: list[npt.NDArray[Any]] = []

    def tensor(self, type_id: int, shape: tuple[int, ...], data: npt.NDArray[Any]) -> int:
        """A tensor of `shape` (fastest axis first) whose values are `data`."""
        tensor: int = native.ggml_new_tensor_3d(self.context, type_id, *shape)
        native.Tensor.from_address(tensor).data = native.address_of(data)
        self.kept.append(data)
        return tensor

    def product(self, weights: int, rows: int, ids: int) -> GraphNode:
        """The MUL_MAT_ID node of these tensors."""
        address: int = native.ggml_mul_mat_id(self.context, weights, rows, ids)
        node = GraphNode(address)
        out = np.zeros(np.prod(node.shape), np.float32)
        tensor = native.Tensor.from_address(address)
        tensor.data, tensor.flags = native.address_of(out), COMPUTE_FLAG
        self.kept.append(out)
        return node

    def compute(self, node: GraphNode, num_threads: int = 1) -> Floats:
        """The node's values, (T, N, M)."""
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


def test_converted_rows() -> None:
    rows = np.random.default_rng(0).standard_normal((5, 256), np.float32)
    assert (convert_rows(rows, F32).view(np.float32) == rows).all()
    f16 = convert_rows(rows, BLOCK_TYPES["F16"])
    assert f16.shape == (5, 512)
    assert (f16.view(np.float16) == rows.astype(np.float16)).all()
    q8_0 = convert_rows(rows, BLOCK_TYPES["Q8_0"]).reshape(5, 8, 34)
    scales = q8_0[..., :2].copy().view(np.float16).astype(np.float32)
    values = (q8_0[..., 2:].view(np.int8) * scales).reshape(rows.shape)
    assert np.abs(values - rows).max() < np.abs(rows).max() / 200
    assert convert_rows(rows, row_type(BLOCK_TYPES["Q4_K"])).shape == (5, 292)


def test_rows_are_converted_one_by_one() -> None:
    """So a row may be converted once for all experts that use it."""
    rows = np.random.default_rng(0).standard_normal((9, 512), np.float32)
    for name in EXPERT_TYPES:
        type_id = row_type(BLOCK_TYPES[name])
        alone = [convert_rows(rows[i : i + 1], type_id)[0] for i in range(9)]
        assert (convert_rows(rows, type_id) == np.stack(alone)).all()


def test_rows_must_lie_as_c_reads_them() -> None:
    rows = np.zeros((4, 256), np.float32)
    for wrong in (rows[:, ::2], rows.T, rows.astype(np.float64)):
        with pytest.raises(AssertionError, match="C reads rows as they lie"):
            convert_rows(wrong, BLOCK_TYPES["F16"])  # type: ignore[arg-type]


# ------------------------------------------------------------------- products
class Case:
    """Experts' matrices (E, M, K), rows (T, N or 1, K) and who uses whom (T, N)."""

    def __init__(self, block_type: str, num_tokens: int, *, shared_rows: bool = True) -> None:
        self.num_experts, self.k, self.m, num_used = 6, 512, 48, 3
        rng = np.random.default_rng(num_tokens)
        matrices = rng.standard_normal((self.num_experts, self.m, self.k), np.float32)
        self.type_id = BLOCK_TYPES[block_type]
        self.weights = quantize_rows(matrices, block_type)
        shape = (num_tokens, 1 if shared_rows else num_used, self.k)
        self.rows = rng.standard_normal(shape, np.float32)
        everyone = np.tile(np.arange(self.num_experts, dtype=np.int32), (num_tokens, 1))
        self.ids = np.ascontiguousarray(rng.permuted(everyone, axis=1)[:, :num_used])

    def by_llama(self, graph: Graph) -> Floats:
        """llama.cpp's one node over all experts, (T, N, M)."""
        num_tokens, rows_per_token, _ = self.rows.shape
        weights = graph.tensor(self.type_id, (self.k, self.m, self.num_experts), self.weights)
        rows = graph.tensor(F32, (self.k, rows_per_token, num_tokens), self.rows)
        ids = graph.tensor(I32, (self.ids.shape[1], num_tokens, 1), self.ids)
        return graph.compute(graph.product(weights, rows, ids))

    def by_experts(self, runner: ProductRunner) -> Floats:
        """Each expert's product by itself, over the rows that use it, (T, N, M)."""
        out = np.zeros((*self.ids.shape, self.m), np.float32)
        products, places, kept = list[Product](), list[Any](), list[Any]()
        for expert in range(self.num_experts):
            token, use = np.nonzero(self.ids == expert)
            rows = self.rows[token, use % self.rows.shape[1]]
            converted = convert_rows(rows, row_type(self.type_id))
            result = np.zeros((len(rows), self.m), np.float32)
            if len(rows):
                addresses = map(native.address_of, (self.weights[expert], converted, result))
                products.append(Product(*addresses, num_rows=len(rows)))
            places.append((token, use))
            kept.append((converted, result))
        runner.run(self.type_id, (self.k, self.m), products)
        for place, (_, result) in zip(places, kept, strict=True):
            out[place] = result
        return out


@pytest.mark.parametrize("num_tokens", [1, 7, 8, 9, 33, 200])
@pytest.mark.parametrize("block_type", EXPERT_TYPES)
def test_products_have_the_bits_of_llamas_one_node(
    block_type: str, num_tokens: int, graph: Graph
) -> None:
    runner = ProductRunner(num_threads=1, max_rows=200)
    for shared_rows in (True, False):  # as gate and up have them, and as down has
        case = Case(block_type, num_tokens, shared_rows=shared_rows)
        expected = case.by_llama(graph)
        assert np.abs(expected).max() > 1
        assert (case.by_experts(runner) == expected).all()
    runner.close()


def test_threads_do_not_change_bits(graph: Graph) -> None:
    case = Case("Q4_K", 33)
    expected = case.by_llama(graph)
    for num_threads in (1, 2, 3):
        runner = ProductRunner(num_threads, max_rows=33)
        assert (case.by_experts(runner) == expected).all()
        runner.close()


def test_more_products_than_one_graph_holds() -> None:
    count, k, m = 2 * ProductRunner.MAX_PRODUCTS + 3, 64, 5
    rng = np.random.default_rng(0)
    weights = rng.standard_normal((count, m, k), np.float32)
    rows = rng.standard_normal((count, k), np.float32)
    out = np.zeros((count, m), np.float32)
    runner = ProductRunner(num_threads=1, max_rows=1)
    places = [map(native.address_of, (weights[i], rows[i], out[i])) for i in range(count)]
    runner.run(F32, (k, m), [Product(*addresses, num_rows=1) for addresses in places])
    assert np.allclose(out, np.einsum("emk,ek->em", weights, rows), atol=1e-5)
    runner.run(F32, (k, m), [])
    runner.close()
    runner.close()


def test_no_product_has_more_rows_than_the_runner_was_made_for() -> None:
    runner = ProductRunner(num_threads=1, max_rows=8)
    with pytest.raises(AssertionError, match="more rows than"):
        Case("F32", 33).by_experts(runner)
    runner.close()


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
    assert [node.source_address(i) for i in range(4)] == [weights, rows, ids, 0]
    node.set_source(2, rows)
    assert node.source_address(2) == rows


def test_a_nodes_op_and_name_are_seen_in_memory(graph: Graph) -> None:
    weights = graph.tensor(F32, (64, 5, 3), np.zeros((3, 5, 64), np.float32))
    rows = graph.tensor(F32, (64, 1, 7), np.zeros((7, 64), np.float32))
    node = graph.product(weights, rows, graph.tensor(I32, (2, 7, 1), np.zeros((7, 2), np.int32)))
    native.Tensor.from_address(node.address).name = b"ffn_moe_up-3"
    assert memory[node.address + NODE_OP] == OP_MUL_MAT_ID
    assert memory[node.address + NODE_NAME + len("ffn_moe_")] == ord("u")
    assert node.name == "ffn_moe_up-3"
    node.set_op(OP_NONE)
    assert memory[node.address + NODE_OP] == OP_NONE


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


def test_a_weight_can_read_a_pool_of_slots(graph: Graph) -> None:
    """The same bits from experts in another order, with gaps between them, by ids of slots."""
    case = Case("Q4_K", 1)
    expected = case.by_llama(graph)
    expert_bytes, stride, num_slots = case.weights[0].nbytes, case.weights[0].nbytes + 4096, 9
    pool = np.full(num_slots * stride + 64, 0xAB, np.uint8)
    slot_of = np.array([7, 0, 3, 8, 1, 5])
    for expert, slot in enumerate(slot_of):
        start = 64 + slot * stride
        pool[start : start + expert_bytes] = case.weights[expert].reshape(-1)
    nothing = np.zeros(0, np.uint8)
    weights = graph.tensor(F32, (case.k, case.m, case.num_experts), nothing)
    rows = graph.tensor(F32, (case.k, 1, 1), case.rows)
    node = graph.product(weights, rows, graph.tensor(I32, (3, 1, 1), case.ids))
    GraphNode(weights).point_at_pool(case.type_id, native.address_of(pool) + 64, stride, num_slots)
    slots = SlotIds(max_used=3)
    slots.set(np.array(slot_of[case.ids[0]], np.int32))
    node.set_source(2, slots.address)
    assert (graph.compute(node) == expected).all()
    assert GraphNode(weights).shape == (case.k, case.m, num_slots, 1)
    assert GraphNode(weights).type_id == case.type_id


def test_a_tensor_can_be_told_to_take_no_bytes(graph: Graph) -> None:
    tensor = graph.tensor(F32, (64, 5, 3), np.zeros(960, np.float32))
    GraphNode(tensor).take_no_bytes()
    assert list(native.Tensor.from_address(tensor).nb) == [0, 0, 0, 0]
    assert GraphNode(tensor).shape == (64, 5, 3, 1)


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
