"""The shape of a model's context, from what is asked for."""

from numbers import Integral
from typing import TypedDict

from typing_extensions import Unpack

from haversack.devices.cores import usable_cores
from haversack.devices.errors import BudgetError, PromptError
from haversack.devices.llama import EXACT_KV_TYPE, MOST_SEQUENCES, ContextShape
from haversack.devices.needs import cell_bytes
from haversack.devices.units import format_bytes

DEFAULT_CTX_TOKENS = 4096
DEFAULT_BATCH_TOKENS = 512
_MAX_CTX_TOKENS = 2**31 - 1  # positions are int32
_MAX_THREADS = 512  # GGML_MAX_N_THREADS


class ShapeSettings(TypedDict, total=False):
    """The rarer settings of a context and of where it lies, see `plan`."""

    batch: int
    sequences: int
    kv_type: str
    trunk: str


def context_shape(
    ctx: int | None, threads: int | None, trained_tokens: int, **rarer: Unpack[ShapeSettings]
) -> ContextShape:
    """Return the shape of a context for a model that was trained with `trained_tokens`; what is not
    given has the values that `edge.plan` documents. Raises PromptError."""
    ctx_tokens = ctx if ctx is not None else min(DEFAULT_CTX_TOKENS, trained_tokens)
    num_threads = threads if threads is not None else usable_cores()
    batch, sequences = rarer.get("batch", DEFAULT_BATCH_TOKENS), rarer.get("sequences", 1)
    for name, value, most in (
        ("ctx", ctx_tokens, _MAX_CTX_TOKENS),
        ("batch", batch, _MAX_CTX_TOKENS),
        ("threads", num_threads, _MAX_THREADS),
        ("sequences", sequences, MOST_SEQUENCES),
    ):
        if not isinstance(value, Integral) or not 1 <= value <= most:
            raise PromptError(f"{name} is {value!r}: give a whole number from 1 to {most}")
    kv_type = rarer.get("kv_type", EXACT_KV_TYPE)
    return ContextShape(ctx_tokens, min(batch, ctx_tokens), num_threads, sequences, kv_type)


def refuse_boundless(shape: ContextShape, ram_bytes: int) -> None:
    """Raise BudgetError if the table of cells alone exceeds the budget, because planning makes
    it."""
    need_bytes = cell_bytes(shape.ctx_tokens * shape.sequences)
    if need_bytes > ram_bytes:
        raise BudgetError(
            f"a context of {shape.ctx_tokens} tokens needs {format_bytes(need_bytes)} for its table"
            f" alone, the budget is {format_bytes(ram_bytes)}: lower --ctx or raise --ram",
            need_bytes=need_bytes,
            have_bytes=ram_bytes,
        )
