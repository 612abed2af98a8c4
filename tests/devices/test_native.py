"""The structures of the binding match C's."""

import sys

import numpy as np

from haversack.devices import _native as native


def test_a_tensor_is_read_as_c_wrote_it() -> None:
    memory = np.zeros(1 << 16, np.uint8)
    context = native.ggml_init(native.GgmlInitParams(len(memory), native.address_of(memory), True))
    q8_0, f32, i32 = 8, 0, 26
    weights = native.ggml_new_tensor_3d(context, q8_0, 64, 5, 3)
    rows = native.ggml_new_tensor_3d(context, f32, 64, 1, 7)
    ids = native.ggml_new_tensor_3d(context, i32, 2, 7, 1)
    node = native.ggml_mul_mat_id(context, weights, rows, ids)
    tensor = native.Tensor.from_address(weights)
    assert tensor.type == q8_0
    assert list(tensor.ne) == [64, 5, 3, 1]
    assert list(tensor.nb) == [34, 2 * 34, 5 * 2 * 34, 3 * 5 * 2 * 34]
    assert not tensor.data
    product = native.Tensor.from_address(node)
    assert native.ggml_op_name(product.op) == b"MUL_MAT_ID"
    assert list(product.src)[:4] == [weights, rows, ids, None]
    assert list(product.ne) == [5, 2, 7, 1]
    assert product.name == b""
    native.ggml_free(context)


def test_memory_by_its_address() -> None:
    source = np.arange(12, dtype=np.int32)
    view = native.array_at(native.address_of(source), (3, 4), np.int32)
    assert view.tolist() == source.reshape(3, 4).tolist()
    view[2, 3] = 99
    assert source[11] == 99
    assert bytes(native.memory[native.address_of(source) + 4 :][:4]) == b"\1\0\0\0"
    assert len(native.memory) == sys.maxsize  # some 64-bit machines use 48 bits, some use 52
