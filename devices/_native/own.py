"""The binding to our own library, which does what would take too long in Python. Its sources are in
devices/native/."""

import ctypes as c
from pathlib import Path
from typing import Any

import haversack.devices
from haversack.devices._native import Address, CFunction
from haversack.devices._native.libraries import prototype
from haversack.devices.errors import BindingError


def _own_library() -> c.CDLL:
    """Load our own library; an editable installation has it in another folder than the sources."""
    paths = [Path(found, "native", "libhaversack.so") for found in haversack.devices.__path__]
    for path in filter(Path.exists, paths):
        return c.CDLL(str(path))
    raise BindingError(
        f"{' or '.join(map(str, paths))} is not there: `pip install` of haversack builds it"
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


class BufferSizes(c.Structure):
    """struct BufferSizes (native/sizes.cpp)"""

    _fields_ = (
        ("type", Address),
        *((name, c.c_int64) for name in ("weight_bytes", "context_bytes", "compute_bytes")),
    )


class Checksum(c.Structure):
    """struct Checksum (native/checksum.hpp)"""

    _fields_ = (
        ("lanes", c.c_uint64 * 8),
        ("rest", c.c_uint8 * 64),
        ("num_rest", c.c_uint64),
    )


class Pass(c.Structure):
    """struct Pass (native/pass.hpp)"""

    _fields_ = (
        *((name, Address) for name in ("decode", "context", "batch", "owner")),
        *((name, Address) for name in ("end", "engine")),
        ("spin_s", c.c_double),
        ("num_threads", c.c_int32),
        ("is_single_row", c.c_int32),
        ("pass_s", c.c_double),
        ("delayed_s", c.c_double),
        ("gave_up", c.c_int32),
        ("failure", c.c_int32),
        ("team", Address),
        ("looked_s", c.c_double),
        ("seen_delayed_s", c.c_double),
    )


class Steps(c.Structure):
    """struct Steps (native/pass.hpp)"""

    _fields_ = (
        *((name, Address) for name in ("logits_after", "ends", "vocabulary")),
        *((name, c.c_int32) for name in ("num_logits", "most")),
        ("most_s", c.c_double),
        *((name, Address) for name in ("stops", "watch", "given", "logits", "likeliest")),
        ("passes_s", c.c_double),
        ("first_s", c.c_double),
        ("num_done", c.c_int32),
    )


# False, null and a negative number stand for an exception, which Python keeps.
ReadInto = CFunction(c.c_int32, c.POINTER(Read))
ShouldStop = CFunction(c.c_bool)
PassEnd = CFunction(c.c_int32, Address, c.c_bool)  # the type of Pass.end
Stops = CFunction(c.c_bool, Address, c.c_int32)  # the type of Steps.stops

NUM_PASSED = 4  # structures of llama.cpp that are passed by value, of two versions
NUM_RUNS = 3  # kinds of runs that longest_runs counts

# ----------------------------------------------------------------- prototypes
# Their sources are native/api.cpp and native/sizes.cpp, unless a comment names another file.
library = _own_library()
ReadPointer = c.POINTER(Read)
_A, _Reads = Address, c.POINTER(ReadPointer)
_I, _L, _B = c.c_int, c.c_int32, c.c_bool


def own_prototype(name: str, *types: Any) -> Any:
    """Return the function `haversack_NAME` of our library."""
    return prototype(library, "haversack_" + name, *types)


readers_new = own_prototype("readers_new", _A, _I, _I, ReadInto, _B)
readers_add_file = own_prototype("readers_add_file", None, _A, _I, _B, _A)
pace_new = own_prototype("pace_new", _A, c.c_double, c.c_double)
pace_admit = own_prototype("pace_admit", c.c_double, _A, c.c_int64)
pace_set_copies = own_prototype("pace_set_copies", None, _A, c.c_bool)
pace_delete = own_prototype("pace_delete", None, _A)
readers_touch_ahead = own_prototype("readers_touch_ahead", None, _A, _A, c.c_int64)
# The engine submits reads and waits for them in C++; these two serve tests.
readers_submit = own_prototype("readers_submit", None, _A, _Reads, c.c_size_t)
readers_wait = own_prototype("readers_wait", _B, _A, _Reads, c.c_size_t, _B, ShouldStop)
readers_counts = own_prototype("readers_counts", None, _A, c.POINTER(ReadCounts))
readers_close = own_prototype("readers_close", None, _A)
readers_delete = own_prototype("readers_delete", None, _A)
_context_sizes = own_prototype(
    "context_sizes", c.c_size_t, _A, _A, c.POINTER(BufferSizes), c.c_size_t
)
# In native/guard.cpp. The functions of llama.cpp are given by their addresses.
guard_install = own_prototype("guard_install", None, _A)
guard_end_process = own_prototype("guard_end_process", None, _I)
guard_advise = own_prototype("guard_advise", None, c.c_char_p)
guard_failure = own_prototype("guard_failure", c.c_char_p)
guard_sizes = own_prototype("guard_sizes", None, c.POINTER(c.c_int64 * NUM_PASSED))
guard_load_model = own_prototype("guard_load_model", _A, _A, c.c_char_p, _A)
guard_init_context = own_prototype("guard_init_context", _A, _A, _A, _A, c.c_int64, _A)
guard_piece = own_prototype("guard_piece", _L, _A, _A, _L, c.c_char_p, _L, _B)
guard_apply = own_prototype("guard_apply", None, _A, _A, _A)
guard_accept = own_prototype("guard_accept", None, _A, _A, _L)
# In native/tokenizing.cpp.
tokenizing_start = own_prototype(
    "tokenizing_start", _A, _A, _A, c.c_char_p, c.c_int64, c.c_int64, c.POINTER(_L)
)
tokenizing_wait = own_prototype("tokenizing_wait", _B, _A, c.c_double)
tokenizing_tokens = own_prototype(
    "tokenizing_tokens", c.c_int64, _A, c.POINTER(_A), c.POINTER(c.c_char_p), c.POINTER(c.c_int64)
)
tokenizing_let_go = own_prototype("tokenizing_let_go", None, _A)
tokenize_here = own_prototype("tokenize_here", _L, _A, _A, c.c_char_p, _L, _A, _L)
longest_piece = own_prototype("longest_piece", _L, _A, _A, _L)
longest_runs = own_prototype(
    "longest_runs", None, c.c_char_p, c.c_int64, c.POINTER(c.c_int64 * NUM_RUNS)
)
# Puts our threads in place of OpenMP's (native/openmp.hpp), in the library of a function's address.
team_take_over = own_prototype("team_take_over", _I, _A)
pass_compute = own_prototype("pass_compute", _L, _A)  # in native/pass.cpp
pass_go_on = own_prototype("pass_go_on", _L, _A, _A)
_Checksum = c.POINTER(Checksum)
checksum_add = own_prototype("checksum_add", None, _Checksum, _A, c.c_size_t)
checksum_pad = own_prototype("checksum_pad", None, _Checksum)
checksum_add_file = own_prototype("checksum_add_file", _L, _Checksum, _I, c.c_int64, c.c_int64)
read_at = own_prototype("read_at", c.c_int64, _I, _A, c.c_int64, c.c_int64)
checksum_digest = own_prototype("checksum_digest", c.c_uint64, _Checksum)
nested_join = own_prototype("nested_join", _B, _L, _A, _A, _A, c.c_size_t)
model_tensors = own_prototype(
    "model_tensors", c.c_size_t, _A, _A, c.c_size_t, c.POINTER(Address), c.c_size_t
)


# -------------------------------------------------------------------- helpers
def sizes_passed_by_value() -> list[int]:
    """Return the bytes of llama_model_params, llama_batch and the two known llama_context_params,
    as compiled."""
    sizes = (c.c_int64 * NUM_PASSED)()
    guard_sizes(c.byref(sizes))
    return list(sizes)


def context_sizes(get_breakdown: int, context: Any) -> list[BufferSizes]:
    """Return what a context and its model take, by buffer type."""
    most = 64  # a few for each of the devices that llama.cpp takes, 16
    sizes = (BufferSizes * most)()
    count = _context_sizes(get_breakdown, context, sizes, most)
    assert count <= most, f"{count} buffer types"
    return list(sizes[:count])


def longest_runs_of(text: bytes) -> list[int]:
    """See native/tokenizing.cpp."""
    longest = (c.c_int64 * NUM_RUNS)()
    longest_runs(text, len(text), c.byref(longest))
    return list(longest)


def start_tokenizing(
    tokenize: int, vocab: Any, text: bytes, stack_bytes: int
) -> tuple[int | None, int]:
    """Start to tokenize. Return the work and 0, or None and errno."""
    error = c.c_int32(0)
    work = tokenizing_start(tokenize, vocab, text, len(text), stack_bytes, c.byref(error))
    return work, error.value


def tokenizing_result(work: int) -> tuple[list[int] | None, str, int]:
    """Return the tokens, or None and why there are none; and the bytes of stack that were used."""
    tokens, failure, stack_bytes = Address(), c.c_char_p(), c.c_int64()
    count = tokenizing_tokens(work, c.byref(tokens), c.byref(failure), c.byref(stack_bytes))
    if count < 0:
        return None, (failure.value or b"").decode(errors="replace"), stack_bytes.value
    found = (c.c_int32 * count).from_address(tokens.value or 0) if count else ()
    return list(found), "", stack_bytes.value
