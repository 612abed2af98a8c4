"""libllama as Python objects: a model."""

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

from haversack.devices import _native as native
from haversack.devices import guard
from haversack.devices._native import llama, own
from haversack.devices._native.streams import buffer_overrides
from haversack.devices.errors import ModelFileError
from haversack.devices.ggml import GraphNode
from haversack.devices.interrupts import StopFlag
from haversack.devices.logs import captured_logs
from haversack.devices.trunk_placement import TrunkPlacement
from haversack.devices.vocabulary import Vocabulary

_ANY_NAME = "."  # a regular expression
_LOAD_NONE = 0  # enum llama_load_mode: read into memory, never map

Progress = Callable[[float], None]


class ExpertWeights(Protocol):
    """Where the routed experts' weights are placed instead of in memory of llama.cpp's."""

    @property
    def overrides(self) -> Mapping[str, int]:
        """The addresses of buffer types, by regular expressions of tensor names."""
        ...

    @property
    def error(self) -> BaseException | None: ...

    def finish_loading(self) -> None:
        """The model is loaded."""
        ...


class LlamaModel:
    """A model loaded into memory, the host's and that of the devices of its `placement`: nothing
    mapped, nothing repacked.

    With `experts`, the routed experts' weights stay out (see ExpertWeights). With `dry`, only the
    header is read and nothing is allocated. `progress` is told the share done, 0 to 1. Where no
    layer lies on a device, all other weights lie in buffers of the type at `weight_memory`. Raises
    ModelFileError, KeyboardInterrupt, and whatever `progress` raises.
    """

    def __init__(
        self,
        path: Path,
        *,
        experts: ExpertWeights | None = None,
        dry: bool = False,
        progress: Progress | None = None,
        placement: TrunkPlacement | None = None,
        weight_memory: int | None = None,
    ) -> None:
        llama.llama_backend_init()
        self.path, self.placement = path, placement or TrunkPlacement()
        self._experts = experts
        stop, failures = StopFlag(), list[BaseException]()
        params = llama.llama_model_default_params()
        self._placed = self.placement.fill(params)
        params.load_mode = _LOAD_NONE
        params.use_extra_bufts, params.no_alloc = False, dry
        params.progress_callback = _progress_callback(progress, stop, failures)
        types = dict(experts.overrides) if experts is not None else {}
        if weight_memory is not None and not self.placement.num_layers:
            types[_ANY_NAME] = weight_memory
        self._overrides = buffer_overrides(types)
        params.tensor_buft_overrides = native.addressof(self._overrides)
        self._model: Any = None
        self._vocabulary: Vocabulary | None = None
        try:
            with captured_logs() as log, stop.listening():
                self._model = guard.load_model(os.fsencode(path), params)
        except KeyboardInterrupt:  # it may have been loaded by then
            self.close()
            raise
        if failures:
            self.close()
            raise failures[0]
        if experts is not None and experts.error is not None:
            self.close()
            raise experts.error
        if not self._model:
            raise ModelFileError(f"llama.cpp cannot load {path}: {log.reason()}")
        if experts is not None:
            experts.finish_loading()
        self._vocabulary = Vocabulary(self._model)

    @property
    def vocabulary(self) -> "Vocabulary":
        """The model's tokenizer."""
        assert self._vocabulary is not None, "the model was not loaded"
        return self._vocabulary

    @property
    def address(self) -> Any:
        return self._model

    @property
    def trained_ctx_tokens(self) -> int:
        """The context length the model was trained for."""
        return int(llama.llama_model_n_ctx_train(self._model))

    @property
    def num_layers(self) -> int:
        """How many layers there are, without the output."""
        return int(llama.llama_model_n_layer(self._model))

    @property
    def hidden_size(self) -> int:
        """How many numbers the last layer gives for each token."""
        return int(llama.llama_model_n_embd(self._model))

    @property
    def drops_parts(self) -> bool:
        """Whether a sequence can lose its last tokens alone: recurrent layers keep one state."""
        return not (
            llama.llama_model_is_recurrent(self._model) or llama.llama_model_is_hybrid(self._model)
        )

    @property
    def chat_template(self) -> str | None:
        """The Jinja source the model file brings, if any."""
        source = llama.llama_model_chat_template(self._model, None)
        return source.decode(errors="replace") if source else None

    def tensors(self) -> list[GraphNode] | None:
        """All weights, where they lie in memory; None on Windows, where llama.cpp does not tell. A
        tensor of the file may be here twice."""
        found = llama.tensor_map()
        if found is None:
            return None
        function, string_bytes = found
        count = own.model_tensors(function, self._model, string_bytes, None, 0)
        addresses = (native.Address * count)()
        own.model_tensors(function, self._model, string_bytes, addresses, count)
        return [GraphNode(address) for address in addresses]

    def close(self) -> None:
        """Free the model; its contexts must be closed first. May be called twice."""
        if self._model:
            if self._vocabulary is not None:
                self._vocabulary.close()
            llama.llama_model_free(self._model)
            self._model = None


def _progress_callback(
    progress: Progress | None, stop: StopFlag, failures: list[BaseException]
) -> Any:
    def receive(share: float, _: object) -> bool:
        try:
            if progress is not None:
                progress(share)
        except BaseException as error:  # an exception must not cross the C frame
            failures.append(error)
        return not (failures or stop.requested)

    return llama.llama_progress_callback(receive)
