"""Calls of llama.cpp that survive when it gives up: a failed assertion or a C++ exception, either
of which would end the process.

Our own library makes such calls: it turns a failed assertion into an exception and catches all
exceptions, see devices/native/guard.cpp. An exception cannot pass other code, such as a team of
threads or Python. There the process ends with a line on stderr that says what failed.
"""

from typing import Any

from haversack.devices import _native as native
from haversack.devices._native import llama, own
from haversack.devices.errors import AbortedError, BindingError

_ABORTED_EXIT_CODE = 2


def _refuse_other_layouts() -> None:
    passed = (llama.llama_model_params, llama.llama_batch, llama.llama_context_params)
    expected = [native.size_of(structure) for structure in passed]
    model, batch, *contexts = own.sizes_passed_by_value()
    if expected not in [[model, batch, context] for context in contexts]:
        raise BindingError(
            f"llama.cpp's parameters have {expected} bytes, haversack was built for"
            f" {[model, batch, *contexts]}: install haversack again"
        )


_refuse_other_layouts()
own.guard_install(native.address_of_function(native.ggml_set_abort_callback))
_LOAD = native.llama_function("llama_model_load_from_file")
_INIT = native.llama_function("llama_init_from_model")
_PIECE = native.llama_function("llama_token_to_piece")
_APPLY = native.llama_function("llama_sampler_apply")
_ACCEPT = native.llama_function("llama_sampler_accept")


def end_process_on_abort() -> None:
    """Have the process end with one line and exit code 2, without a memory dump, where llama.cpp
    gives up and nothing can be raised. Programs call this, libraries do not."""
    own.guard_end_process(_ABORTED_EXIT_CODE)


def advise(text: str) -> None:
    """Have `text` follow the reason wherever llama.cpp gives up from now on, in errors and in the
    line of a process that ends."""
    own.guard_advise(text.encode())


def failure() -> str | None:
    """Return why llama.cpp gave up in this thread's latest guarded call, None if it did not."""
    told = own.guard_failure()
    return None if told is None else str(told.decode(errors="replace"))


def check_failure() -> None:
    """Raise AbortedError if llama.cpp gave up in the latest guarded call of this thread."""
    if (told := failure()) is not None:
        raise AbortedError(f"llama.cpp gave up: {told}")


# These return llama.cpp's own result, which is valid only if `check_failure` raises nothing.
def load_model(path: bytes, params: Any) -> Any:
    """Call llama_model_load_from_file; None if the model cannot be loaded."""
    return own.guard_load_model(_LOAD, path, native.addressof(params))


def init_context(model: Any, params: Any, owner: int | None = None) -> Any:
    """Call llama_init_from_model; None if the context cannot be made. `owner` is the address of the
    device that computes parts of its graphs."""
    address, num_bytes = native.addressof(params), native.size_of(params)
    return own.guard_init_context(_INIT, model, address, num_bytes, owner)


def token_to_piece(vocab: Any, token: int, buffer: bytes, special: bool) -> int:
    """Call llama_token_to_piece."""
    return int(own.guard_piece(_PIECE, vocab, token, buffer, len(buffer), special))


def sampler_apply(sampler: Any, candidates: Any) -> None:
    """Call llama_sampler_apply. Raises AbortedError."""
    own.guard_apply(_APPLY, sampler, candidates)
    check_failure()


def sampler_accept(sampler: Any, token: int) -> None:
    """Call llama_sampler_accept. Raises AbortedError."""
    own.guard_accept(_ACCEPT, sampler, token)
    check_failure()
