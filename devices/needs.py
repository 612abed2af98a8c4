"""The memory that a context of llama.cpp will take, before it is made."""

from dataclasses import dataclass

from haversack.devices import _native as native
from haversack.devices import guard
from haversack.devices._native import backends, llama, own
from haversack.devices.causality import refuse_wrong_kind
from haversack.devices.errors import ModelFileError
from haversack.devices.interrupts import StopFlag
from haversack.devices.llama import EXACT_KV_TYPE, ContextShape, context_params
from haversack.devices.llama_model import LlamaModel
from haversack.devices.logs import captured_logs
from haversack.devices.vocabulary import Vocabulary

# Products with blocks of 256 weights (K and IQ types) take 512 KiB for each thread, in llama.cpp's
# own scratch and in that of the expert products; flash attention takes the rest, most of it for
# tiles of 64 tokens.
_TILE_BYTES = 512 * 1024
_ATTENTION_TILE_TOKENS = 64
THREAD_SCRATCH_BYTES = 2 * _TILE_BYTES + 256 * 1024
_SMALL_THREAD_BYTES = 32 * 1024  # measured: 16 KiB, the stack and attention of few tokens
LOGIT_BYTES = 4
_ROW_ID_BYTES = 8  # of a (row, expert) pair in llama.cpp's scratch for MUL_MAT_ID
_MATRIX_SCRATCH_BYTES = 72  # of each expert there
VOCABULARY_FACTOR = 10  # measured: a vocabulary takes 9 to 10 times its bytes in the header
# Measured: one with scores takes 198 bytes a token; a model's own structures take the rest.
_SCORED_TOKEN_BYTES, _MODEL_BYTES = 205, 1 << 20
# llama.cpp's tables hold 48 bytes for each cell, and two nodes of 48 bytes for each one in use.
_CELL_BYTES = 152
_INDEX_KEYS = (b".attention.indexer.", b".attention.compress_ratios")
_KEY_BYTES = 256
_ROTATION_SIDES = (64, 128, 256, 512)


@dataclass(frozen=True)
class DeviceNeeds:
    """The bytes that a model and a context allocate on a device: those of the weights, without
    experts that are kept out, of the keys and values, and of what is computed with them."""

    name: str
    weight_bytes: int
    kv_bytes: int
    compute_bytes: int


@dataclass(frozen=True)
class MemoryNeeds:
    """The bytes that a context allocates in the host's memory beside the weights, and what it and
    its model allocate on the devices of the model's placement, in its order. `compute_bytes`
    include `thread_bytes`, the most that its threads may take."""

    kv_bytes: int
    compute_bytes: int
    thread_bytes: int
    devices: tuple[DeviceNeeds, ...] = ()


def memory_needs(model: LlamaModel, shape: ContextShape) -> MemoryNeeds:
    """Return what a context over a `dry` model would allocate, by llama.cpp's own dry run.

    llama.cpp does not count the rows of logits, the tables of cells and the graphs' descriptions,
    so these are added here. Raises ModelFileError where llama.cpp makes no such context, and where
    the model is no causal text model.
    """
    params = context_params(shape, model.placement)
    with captured_logs() as log, StopFlag().listening():
        context = guard.init_context(model.address, params)
    if not context:
        knob = "" if shape.kv_type == EXACT_KV_TYPE else "; give --kv-type f16"
        raise ModelFileError(
            f"llama.cpp cannot plan a context of {shape.ctx_tokens} tokens for"
            f" {model.path}: {log.reason()}{knob}"
        )
    try:
        refuse_wrong_kind(model.path, model.address, context)
        sizes = own.context_sizes(native.llama_function(llama.MEMORY_BREAKDOWN), context)
        max_nodes = llama.graph_max_nodes(context, shape.batch_tokens)
    finally:
        llama.llama_free(context)
    table_bytes = cell_bytes(shape.ctx_tokens * shape.sequences) + _rotation_bytes(shape)
    tables_bytes = _num_cell_tables(model) * table_bytes
    num_rows = params.n_outputs_max
    row_bytes = LOGIT_BYTES * (model.vocabulary.num_tokens + model.hidden_size)  # hidden for embed
    logits_bytes = row_bytes * num_rows
    graph_bytes = _graph_bytes(max_nodes)
    threads_bytes = shape.threads * THREAD_SCRATCH_BYTES
    _, kv_bytes, compute_bytes = _bytes_on(None, sizes)
    return MemoryNeeds(
        kv_bytes + tables_bytes,
        compute_bytes + logits_bytes + graph_bytes + threads_bytes,
        threads_bytes,
        tuple(
            DeviceNeeds(each.device.name, *_bytes_on(each.device.address, sizes))
            for each in model.placement.layers
        ),
    )


def _bytes_on(device: int | None, sizes: list[own.BufferSizes]) -> tuple[int, int, int]:
    """Return the bytes of weights, keys and values, and computing on a device, None for the
    host."""
    there = [each for each in sizes if backends.device_of_buffer_type(each.type) == device]
    return (
        sum(each.weight_bytes for each in there),
        sum(each.context_bytes for each in there),
        sum(each.compute_bytes for each in there),
    )


def thread_bytes(shape: ContextShape, has_tiles: bool) -> int:
    """Return the scratch of all threads of a context without expert products of ours. `has_tiles`:
    whether weights lie in blocks of 256."""
    if shape.batch_tokens >= _ATTENTION_TILE_TOKENS:
        return shape.threads * THREAD_SCRATCH_BYTES
    return shape.threads * (_SMALL_THREAD_BYTES + _TILE_BYTES * has_tiles)


def vocabulary_bytes(vocabulary: Vocabulary, header_bytes: int) -> int:
    """Return the most memory that a vocabulary takes whose file has a header of `header_bytes`."""
    most_bytes = VOCABULARY_FACTOR * header_bytes
    if not vocabulary.is_sentencepiece:
        return most_bytes
    return min(most_bytes, _MODEL_BYTES + _SCORED_TOKEN_BYTES * vocabulary.num_tokens)


def product_scratch(num_matrices: int, num_pairs: int) -> int:
    """Return llama.cpp's scratch for a MUL_MAT_ID over `num_matrices` and (row, expert) pairs."""
    return num_matrices * (_MATRIX_SCRATCH_BYTES + _ROW_ID_BYTES * num_pairs)


def cell_bytes(ctx_tokens: int) -> int:
    """Return the bytes of a cache's table of its cells when all cells are in use."""
    return _CELL_BYTES * ctx_tokens


def _rotation_bytes(shape: ContextShape) -> int:
    """Return the most bytes of the matrices with which llama.cpp rotates keys and values of a cache
    before it quantises them."""
    return 0 if shape.kv_type == EXACT_KV_TYPE else sum(4 * side * side for side in _ROTATION_SIDES)


def _num_cell_tables(model: LlamaModel) -> int:
    """Return the most caches of the context's length that there are: one, one more for layers that
    see a window, and two for an indexer or compressed keys."""
    num_keys = llama.llama_model_meta_count(model.address)
    buffer = native.text_buffer(_KEY_BYTES)
    tables = 1 + int(llama.llama_model_n_swa(model.address) > 0)
    for number in range(num_keys):
        llama.llama_model_meta_key_by_index(model.address, number, buffer, _KEY_BYTES)
        if any(word in buffer.value for word in _INDEX_KEYS):
            return tables + 2
    return tables


def _graph_bytes(max_nodes: int) -> int:
    """Return the bytes of two graphs, the largest and the latest, and of tables to schedule one.

    They are small for most models, but hybrid ones get 40 nodes for each token of a batch.
    """
    tensors_bytes = int(native.ggml_tensor_overhead()) * max_nodes
    return 2 * tensors_bytes + 3 * int(native.ggml_graph_overhead_custom(max_nodes, False))
