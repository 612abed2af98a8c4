"""Plain llama.cpp, driven through its own binding: what tests and benchmarks compare with.

Nothing of haversack's engine is used here. Weights are mapped, as llama.cpp does by default, and
not repacked, because repacked kernels round differently and are no reference for exactness.
"""

import os
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from haversack.devices._native import addressof, array_at, chosen, llama
from haversack.devices._native.streams import buffer_overrides, device_list, host_buffer_type
from haversack.edge.replay import Replay

_ALL_LAYERS = 999
_EXPERTS = r"\.ffn_(up|down|gate|gate_up)_(ch|)exps"  # as --cpu-moe and --n-cpu-moe name them


def drop_pages(paths: Sequence[Path]) -> None:
    """Drop the pages of these files from memory, where the system can (Linux). A mapped page that
    was in memory before is charged to no control group and loads in no time."""
    if sys.platform == "linux":
        for path in paths:
            with path.open("rb") as file:
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


class PlainTime(NamedTuple):
    """Seconds of decoding, and of forcing a routing meanwhile, which calls Python for every node of
    the graph."""

    decode_s: float
    forcing_s: float


@dataclass(frozen=True)
class PlainPlacement:
    """A model on the device at an address, but for the experts of its first `num_cpu_layers`
    layers, as llama.cpp's --n-cpu-moe has it. `cache_bytes` of the device's memory hold copies of
    those experts, where the build has such a cache (`has_expert_cache`)."""

    device: int
    num_cpu_layers: int
    cache_bytes: int = 0


def has_expert_cache() -> bool:
    """Return whether the build of llama.cpp in use can cache experts on a device."""
    return chosen.build.has_moe_cache_size


class PlainLlama:
    """A model and a context of plain llama.cpp; a context manager. With `replay`, its routing is
    forced upon the model. Without `placement` all of it is on the CPU."""

    def __init__(
        self,
        path: Path,
        ctx_tokens: int,
        threads: int,
        batch_tokens: int = 512,
        replay: Replay | None = None,
        placement: PlainPlacement | None = None,
    ) -> None:
        llama.llama_backend_init()
        params = llama.llama_model_default_params()
        params.use_extra_bufts, params.n_gpu_layers = False, 0
        self._place(params, placement)
        self._model: Any = llama.llama_model_load_from_file(str(path).encode(), params)
        if not self._model:
            raise ValueError(f"llama.cpp cannot load {path}")
        shape = llama.llama_context_default_params()
        shape.n_ctx, shape.n_batch, shape.n_ubatch = ctx_tokens, batch_tokens, batch_tokens
        shape.n_threads = shape.n_threads_batch = threads
        if placement is not None and placement.cache_bytes:
            shape.moe_cache_size = placement.cache_bytes
        if replay is not None:
            self._on_node = llama.ggml_backend_sched_eval_callback(replay.on_node)
            shape.cb_eval = self._on_node
        self._replay = replay
        self._context: Any = llama.llama_init_from_model(self._model, shape)
        if not self._context:
            llama.llama_model_free(self._model)
            raise ValueError(f"llama.cpp makes no context of {ctx_tokens} tokens for {path}")
        vocabulary = llama.llama_model_get_vocab(self._model)
        self._num_tokens = int(llama.llama_vocab_n_tokens(vocabulary))

    def _place(self, params: Any, placement: PlainPlacement | None) -> None:
        """Write into the model's parameters what lies where."""
        if placement is None:
            return
        layers = [rf"blk\.{layer}{_EXPERTS}" for layer in range(placement.num_cpu_layers)]
        self._devices = device_list([placement.device])
        self._overrides = buffer_overrides({each: host_buffer_type() for each in layers})
        params.devices = addressof(self._devices)
        params.tensor_buft_overrides = addressof(self._overrides)
        params.n_gpu_layers = _ALL_LAYERS

    def decode(self, tokens: Sequence[int], every_row: bool = False) -> None:
        """Append `tokens` to the sequence and compute the logits after the last, or after each."""
        batch = (llama.llama_token * len(tokens))(*tokens)
        rows = llama.llama_batch_get_one(batch, len(tokens))
        if every_row:
            rows.logits = np.ctypeslib.as_ctypes(np.ones(len(tokens), np.int8))
        status = llama.llama_decode(self._context, rows)
        if status != 0:
            raise RuntimeError(f"llama.cpp failed with status {status}")

    def rewind(self, num_tokens: int) -> None:
        """Forget all but the first `num_tokens` tokens."""
        llama.llama_memory_seq_rm(llama.llama_get_memory(self._context), 0, num_tokens, -1)

    def last_logits(self) -> npt.NDArray[np.float32]:
        """Return the logits after the last token, (vocabulary,) float32."""
        address = llama.llama_get_logits_ith(self._context, -1)
        return array_at(address, (self._num_tokens,), np.float32).copy()

    def logits(self, tokens: Sequence[int], prefill: int) -> npt.NDArray[np.float32]:
        """Return the same as `edge.Model.logits`: logits after the first `prefill` tokens, computed
        in one batch, and after each of the others, computed alone."""
        llama.llama_memory_clear(llama.llama_get_memory(self._context), True)
        rows = []
        for batch in [tokens[:prefill], *([token] for token in tokens[prefill:])]:
            self.decode(batch)
            rows.append(self.last_logits())
        return np.stack(rows)

    def timed(self, batches: Sequence[Sequence[int]]) -> PlainTime:
        """Decode `batches`, one after the other; return the seconds."""
        forced_s, began_s = self._forcing_s, time.perf_counter()
        for batch in batches:
            self.decode(batch)
        forcing_s = self._forcing_s - forced_s
        return PlainTime(time.perf_counter() - began_s - forcing_s, forcing_s)

    @property
    def _forcing_s(self) -> float:
        return 0.0 if self._replay is None else self._replay.callback_s

    def close(self) -> None:
        """Free both; may be called twice."""
        if self._model:
            llama.llama_free(self._context)
            llama.llama_model_free(self._model)
            self._model = None

    def __enter__(self) -> "PlainLlama":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
