"""The binding to our own library: what a token would spend too long in Python for. Its sources are
in devices/native/."""

import ctypes as c
import sys
from pathlib import Path
from typing import Any

import haversack.devices
from haversack.devices._native import Address, CFunction, prototype
from haversack.devices.errors import BindingError


def _own_library() -> c.CDLL | None:
    """Our own library; an installation in place has it elsewhere than the sources."""
    if sys.platform == "win32":
        return None
    paths = [Path(found, "native", "libhaversack.so") for found in haversack.devices.__path__]
    for path in filter(Path.exists, paths):
        return c.CDLL(str(path))
    raise BindingError(
        f"{' or '.join(map(str, paths))} is not there: `pip install` of haversack builds it, which"
        " needs a C++ compiler"
    )


# ----------------------------------------------------------------- structures
class Read(c.Structure):
    """struct Read (native/readers.hpp); `source` is its `from`, `target` its `to`"""

    _fields_ = (
        ("room", Address),
        *((name, c.c_int64) for name in ("offset", "length", "need")),
        *((name, c.c_int64) for name in ("source", "target", "num_bytes")),
        *((name, c.c_int32) for name in ("file", "ahead", "state", "error")),
        ("got", c.c_int64),
        ("due_s", c.c_double),
    )


class ReadCounts(c.Structure):
    """struct Counts (native/readers.hpp)"""

    _fields_ = (
        *(("bytes_read", c.c_int64), ("busy_s", c.c_double), ("wait_s", c.c_double)),
        *(("num_ahead", c.c_int32), ("num_reading", c.c_int32)),
    )


class ContextSizes(c.Structure):
    """struct Sizes (native/sizes.cpp)"""

    _fields_ = tuple((name, c.c_int64) for name in ("context_bytes", "compute_bytes", "max_nodes"))


class Checksum(c.Structure):
    """struct Checksum (native/checksum.hpp)"""

    _fields_ = (
        ("lanes", c.c_uint64 * 8),
        ("rest", c.c_uint8 * 64),
        ("num_rest", c.c_uint64),
    )


class TableArrays(c.Structure):
    """struct Table (native/table.hpp)"""

    _fields_ = (
        *((name, c.c_int32) for name in ("num_rows", "num_experts", "num_slots", "num_spare")),
        *((name, Address) for name in ("slot_of", "owner", "state", "pins")),
        *((name, Address) for name in ("uses", "last_pass", "last_use", "faded", "clock")),
        *((name, c.c_double) for name in ("half_life", "growth", "lately", "recency")),
    )


class TokenMatrix(c.Structure):
    """struct Matrix (native/token_path.hpp)"""

    _fields_ = (
        ("rooms", Address),
        *((name, c.c_int64) for name in ("stride", "rest", "offset", "num_bytes")),
        *((name, c.c_int32) for name in ("file", "kind")),
    )


MAX_MATRICES = 4


class TokenLayer(c.Structure):
    """struct Layer (native/token_path.hpp)"""

    _fields_ = (
        *((name, c.c_int32) for name in ("number", "row", "table", "num_matrices")),
        ("matrices", TokenMatrix * MAX_MATRICES),
    )


class TokenRouter(c.Structure):
    """struct Router (native/token_path.hpp)"""

    _fields_ = (
        *((name, Address) for name in ("weight", "bias")),
        *((name, c.c_int32) for name in ("num_experts", "num_inputs", "num_used")),
    )


class ProductTensors(c.Structure):
    """struct ProductTensors (native/token_path.hpp)"""

    _fields_ = tuple((name, Address) for name in ("weight", "row", "out"))


# False, null and a negative number stand for an exception, which Python keeps.
ReadInto = CFunction(c.c_int32, c.POINTER(Read))
ShouldStop = CFunction(c.c_bool)
OnNode = CFunction(c.c_bool, Address, c.c_bool)
OnChoice = CFunction(c.c_bool, Address)
Foresee = CFunction(c.c_int32, c.c_int32)
MakeGraph = CFunction(Address, c.c_int32, c.c_int32, c.POINTER(ProductTensors))


class TokenPython(c.Structure):
    """struct Python (native/token_path.hpp)"""

    _fields_ = (
        ("on_node", OnNode),
        ("on_choice", OnChoice),
        ("foresee", Foresee),
        ("should_stop", ShouldStop),
        ("make_graph", MakeGraph),
    )


class TokenOdds(c.Structure):
    """struct Odds (native/token_path.hpp)"""

    _fields_ = (
        *((name, Address) for name in ("chances", "quiet")),
        *((name, c.c_int32) for name in ("depth", "num_ranks")),
        *((name, c.c_double) for name in ("least_chance", "memory")),
        ("quiet_tokens", c.c_int64),
    )


class TokenGgml(c.Structure):
    """struct Ggml (native/token_path.hpp)"""

    _fields_ = (
        ("graph_compute", Address),
        ("backend", Address),
        *((name, c.c_int32) for name in ("op_none", "op_mul_mat_id", "op_mul_mat")),
        ("slot_ids", Address),
        ("max_used", c.c_int32),
    )


class TokenState(c.Structure):
    """struct TokenState (native/token_path.hpp)"""

    _fields_ = (
        *((name, c.c_int32) for name in ("watched", "foresees", "by_python", "num_seen")),
        ("failure", c.c_int32),
        ("choice", Address),
        ("began_s", c.c_double),
        ("failed_node", Address),
        ("failed_read", Address),
        *((name, c.c_int64) for name in ("failed_offset", "failed_need", "failed_got")),
        *((name, c.c_int32) for name in ("failed_file", "failed_error")),
        *((name, c.c_int64) for name in ("hits", "misses", "guessed", "guessed_right")),
        *((name, c.c_int64) for name in ("foreseeable", "needed")),
        *((name, c.c_double) for name in ("own_s", "product_s")),
    )


NUM_PASSED = 3  # structures of llama.cpp that are passed by value
NUM_RUNS = 3  # kinds of runs that longest_runs counts

# ----------------------------------------------------------------- prototypes
# In native/api.cpp, native/sizes.cpp and where it is said.
if (_own := _own_library()) is not None:
    ReadPointer = c.POINTER(Read)
    _A, _Reads = Address, c.POINTER(ReadPointer)
    _I, _L, _B = c.c_int, c.c_int32, c.c_bool

    def _own_prototype(name: str, *types: Any, library: c.CDLL = _own) -> Any:
        return prototype(library, "haversack_" + name, *types)

    readers_new = _own_prototype("readers_new", _A, _I, _I, ReadInto, _B)
    readers_add_file = _own_prototype("readers_add_file", None, _A, _I, _B, _A)
    pace_new = _own_prototype("pace_new", _A, c.c_double, c.c_double)
    pace_admit = _own_prototype("pace_admit", c.c_double, _A, c.c_int64)
    pace_delete = _own_prototype("pace_delete", None, _A)
    readers_touch_ahead = _own_prototype("readers_touch_ahead", None, _A, _A, c.c_int64)
    readers_submit = _own_prototype("readers_submit", None, _A, _Reads, c.c_size_t)
    readers_demand = _own_prototype("readers_demand", None, _A, _Reads, c.c_size_t)
    readers_cancel = _own_prototype("readers_cancel", None, _A, _Reads, c.c_size_t)
    readers_wait = _own_prototype("readers_wait", _B, _A, _Reads, c.c_size_t, _B, ShouldStop)
    readers_settle = _own_prototype("readers_settle", None, _A, _Reads, c.c_size_t)
    readers_drain = _own_prototype("readers_drain", None, _A)
    readers_counts = _own_prototype("readers_counts", None, _A, c.POINTER(ReadCounts))
    readers_by_ring = _own_prototype("readers_by_ring", _B, _A)
    readers_close = _own_prototype("readers_close", None, _A)
    readers_delete = _own_prototype("readers_delete", None, _A)
    context_sizes = _own_prototype(
        "context_sizes", None, _A, _A, _A, c.c_uint32, c.POINTER(ContextSizes)
    )
    # In native/guard.cpp. The functions of llama.cpp are given by their addresses.
    guard_install = _own_prototype("guard_install", None, _A)
    guard_end_process = _own_prototype("guard_end_process", None, _I)
    guard_failure = _own_prototype("guard_failure", c.c_char_p)
    guard_sizes = _own_prototype("guard_sizes", None, c.POINTER(c.c_int64 * NUM_PASSED))
    guard_load_model = _own_prototype("guard_load_model", _A, _A, c.c_char_p, _A)
    guard_init_context = _own_prototype("guard_init_context", _A, _A, _A, _A)
    guard_decode = _own_prototype("guard_decode", _L, _A, _A, _A)
    guard_piece = _own_prototype("guard_piece", _L, _A, _A, _L, c.c_char_p, _L, _B)
    guard_apply = _own_prototype("guard_apply", None, _A, _A, _A)
    guard_accept = _own_prototype("guard_accept", None, _A, _A, _L)
    # In native/tokenizing.cpp.
    tokenizing_start = _own_prototype(
        "tokenizing_start", _A, _A, _A, c.c_char_p, c.c_int64, c.c_int64, c.POINTER(_L)
    )
    tokenizing_wait = _own_prototype("tokenizing_wait", _B, _A, c.c_double)
    tokenizing_tokens = _own_prototype(
        "tokenizing_tokens",
        c.c_int64,
        _A,
        c.POINTER(_A),
        c.POINTER(c.c_char_p),
        c.POINTER(c.c_int64),
    )
    tokenizing_let_go = _own_prototype("tokenizing_let_go", None, _A)
    tokenize_here = _own_prototype("tokenize_here", _L, _A, _A, c.c_char_p, _L, _A, _L)
    longest_piece = _own_prototype("longest_piece", _L, _A, _A, _L)
    longest_runs = _own_prototype(
        "longest_runs", None, c.c_char_p, c.c_int64, c.POINTER(c.c_int64 * NUM_RUNS)
    )
    _Ggml, _Python, _Table = map(c.POINTER, (TokenGgml, TokenPython, TableArrays))
    _Odds = c.POINTER(TokenOdds)
    token_path_new = _own_prototype("token_path_new", _A, _Ggml, _Python, _Odds, _A)
    token_path_add_table = _own_prototype("token_path_add_table", None, _A, _Table)
    token_path_add_layer = _own_prototype("token_path_add_layer", None, _A, c.POINTER(TokenLayer))
    token_path_add_product = _own_prototype("token_path_add_product", None, _A, _A, _L, _L)
    token_path_add_router = _own_prototype(
        "token_path_add_router", None, _A, _L, c.POINTER(TokenRouter)
    )
    token_path_state = _own_prototype("token_path_state", c.POINTER(TokenState), _A)
    token_path_read_ahead = _own_prototype("token_path_read_ahead", _L, _A, _L, _A, _L, _L)
    token_path_release = _own_prototype("token_path_release", None, _A)
    token_path_withdraw = _own_prototype("token_path_withdraw", None, _A)
    token_path_forget = _own_prototype("token_path_forget", None, _A)
    token_path_delete = _own_prototype("token_path_delete", None, _A)
    # threads that compute (native/team.hpp); the library is named by a function of it
    team_take_over = _own_prototype("team_take_over", _I, _A)
    # These keep the interpreter's lock: they take less time than letting it go and getting it back.
    _brief = c.PyDLL(_own._name)
    team_set = _own_prototype("team_set", None, _I, c.c_double, library=_brief)
    team_rest = _own_prototype("team_rest", None, library=_brief)
    team_delayed_s = _own_prototype("team_delayed_s", c.c_double, library=_brief)
    token_path_on_node = int(c.cast(_own.haversack_token_path_on_node, Address).value or 0)
    _Checksum = c.POINTER(Checksum)
    checksum_add = _own_prototype("checksum_add", None, _Checksum, _A, c.c_size_t)
    checksum_pad = _own_prototype("checksum_pad", None, _Checksum)
    checksum_add_file = _own_prototype("checksum_add_file", _L, _Checksum, _I, c.c_int64, c.c_int64)
    checksum_digest = _own_prototype("checksum_digest", c.c_uint64, _Checksum)
    model_tensors = _own_prototype(
        "model_tensors", c.c_size_t, _A, _A, c.POINTER(Address), c.c_size_t
    )


# -------------------------------------------------------------------- helpers
def sizes_passed_by_value() -> list[int]:
    """The bytes of llama_model_params, llama_context_params and llama_batch as compiled in."""
    sizes = (c.c_int64 * NUM_PASSED)()
    guard_sizes(c.byref(sizes))
    return list(sizes)


def longest_runs_of(text: bytes) -> list[int]:
    """See native/tokenizing.cpp."""
    longest = (c.c_int64 * NUM_RUNS)()
    longest_runs(text, len(text), c.byref(longest))
    return list(longest)


def start_tokenizing(
    tokenize: int, vocab: Any, text: bytes, stack_bytes: int
) -> tuple[int | None, int]:
    """The work that was begun, or None and errno."""
    error = c.c_int32(0)
    work = tokenizing_start(tokenize, vocab, text, len(text), stack_bytes, c.byref(error))
    return work, error.value


def tokenizing_result(work: int) -> tuple[list[int] | None, str, int]:
    """The tokens, or None and why there are none; and the bytes of stack that were used."""
    tokens, failure, stack_bytes = Address(), c.c_char_p(), c.c_int64()
    count = tokenizing_tokens(work, c.byref(tokens), c.byref(failure), c.byref(stack_bytes))
    if count < 0:
        return None, (failure.value or b"").decode(errors="replace"), stack_bytes.value
    found = (c.c_int32 * count).from_address(tokens.value or 0) if count else ()
    return list(found), "", stack_bytes.value
