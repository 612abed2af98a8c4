"""onnxruntime as Python objects: a decoder in an ONNX file, and sequences of tokens over it."""

import logging
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from haversack.devices.errors import ContextError, HaversackError, ModelFileError
from haversack.devices.llama import ContextShape, Row
from haversack.edge.onnx_ports import LOGITS, MASK, POSITIONS, TOKENS, read_ports
from haversack.edge.onnx_vocabulary import OnnxVocabulary

_log = logging.getLogger("haversack.model")

# The best first. Those that compile a model for minutes, or send it elsewhere, are left out.
_PROVIDERS = (
    *("CUDAExecutionProvider", "MIGraphXExecutionProvider", "ROCMExecutionProvider"),
    *("DmlExecutionProvider", "CoreMLExecutionProvider", "OpenVINOExecutionProvider"),
    "CPUExecutionProvider",
)
_ERRORS_ALONE = 3  # of its log, which goes to stderr


def load_package(name: str) -> Any:
    """Return a package of the extra `onnx`. Raises HaversackError if it is not installed."""
    try:
        return import_module(name)
    except ModuleNotFoundError as error:
        raise HaversackError(
            f"a drafter in ONNX needs the package {error.name}, which is not installed:"
            " pip install 'haversack[onnx]'"
        ) from error


class OnnxModel:
    """A decoder in an ONNX file, loaded for the best device that onnxruntime has here."""

    def __init__(self, path: Path, threads: int) -> None:
        """Raises ModelFileError, HaversackError."""
        self.path, self.ports = path, read_ports(path)
        self.vocabulary = OnnxVocabulary(path, load_package("tokenizers"))
        if self.ports.num_logits and self.ports.num_logits < self.vocabulary.num_tokens:
            raise ModelFileError(
                f"{path.name} gives {self.ports.num_logits} logits, and {self.vocabulary.path.name}"
                f" beside it has {self.vocabulary.num_tokens} tokens: give the model its own"
            )
        self._session: Any = self._opened(load_package("onnxruntime"), threads)
        _log.info("%s drafts on %s", path.name, self.provider)

    def _opened(self, onnxruntime: Any, threads: int) -> Any:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
        options.log_severity_level = _ERRORS_ALONE
        # Its threads must not spin beside llama.cpp's, and memory is what was planned: no arena
        # that grows by doubling, no second copy of the weights in another order.
        options.enable_cpu_mem_arena = options.enable_mem_pattern = False
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.add_session_config_entry("session.disable_prepacking", "1")
        found = onnxruntime.get_available_providers()
        providers = [each for each in _PROVIDERS if each in found]
        try:
            return onnxruntime.InferenceSession(str(self.path), options, providers=providers)
        except Exception as error:  # onnxruntime has a tree of its own
            raise ModelFileError(
                f"onnxruntime cannot load {self.path}: {first_line(error)}"
            ) from error

    @property
    def provider(self) -> str:
        """Return what computes it, by onnxruntime's name."""
        return str(self._session.get_providers()[0])

    def run(self, feeds: dict[str, npt.NDArray[Any]]) -> list[npt.NDArray[Any]]:
        """Return the logits, then the keys and values. Raises HaversackError."""
        assert self._session is not None, "the model is closed"
        try:
            found: list[npt.NDArray[Any]] = self._session.run([LOGITS, *self.ports.presents], feeds)
        except Exception as error:
            raise HaversackError(
                f"onnxruntime cannot compute {self.path.name}: {first_line(error)}"
            ) from error
        return found

    def close(self) -> None:
        """Free the model; may be called twice."""
        self._session = None


def first_line(error: Exception) -> str:
    """Return what an error of onnxruntime says, in one line."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]


class OnnxContext:
    """Sequences of tokens over a decoder. Keys and values of each are kept between passes, and cut
    off where tokens are dropped: what is left has the same bits."""

    def __init__(self, model: OnnxModel, shape: ContextShape) -> None:
        self._model, self._ctx_tokens = model, shape.ctx_tokens
        ports = model.ports
        nothing = np.zeros((1, ports.num_heads, 0, ports.head_dim), ports.kv_dtype)
        self._held = [[nothing] * len(ports.pasts) for _ in range(shape.sequences)]
        self._logits: npt.NDArray[np.float32] | None = None

    def num_tokens(self, sequence: int = 0) -> int:
        """Return how many tokens the sequence has."""
        return int(self._held[sequence][0].shape[2])

    def compute(self, rows: Sequence[Row]) -> None:
        """Append `rows` to their sequence, which is the same for all; `borrow_logits` then gives
        those of the last one. Raises ContextError, HaversackError; then none is appended."""
        sequence, held = rows[0].sequence, self.num_tokens(rows[0].sequence)
        if held + len(rows) > self._ctx_tokens:
            raise ContextError(f"no room for {len(rows)} more tokens of {self._ctx_tokens}")
        logits, *found = self._model.run(self._feeds(rows, held))
        self._held[sequence] = found
        last = logits[0, -1, : self._model.vocabulary.num_tokens]
        self._logits = np.array(last, np.float32)

    def _feeds(self, rows: Sequence[Row], held: int) -> dict[str, npt.NDArray[Any]]:
        ports = self._model.ports
        feeds: dict[str, npt.NDArray[Any]] = {
            TOKENS: np.array([[row.token for row in rows]], np.int64),
            MASK: np.ones((1, held + len(rows)), np.int64),
            POSITIONS: np.arange(held, held + len(rows), dtype=np.int64)[None],
            **{name: np.array(1, np.int64) for name in ports.counts},
        }
        feeds = {name: value for name, value in feeds.items() if name in ports.inputs}
        return feeds | dict(zip(ports.pasts, self._held[rows[0].sequence], strict=True))

    def borrow_logits(self) -> npt.NDArray[np.float32]:
        """Return the logits after the last row of the latest pass, (vocabulary,) float32."""
        assert self._logits is not None, "nothing was computed"
        return self._logits

    def forget(self, position: int, sequence: int = 0) -> None:
        """Drop the tokens of `sequence` from `position` on."""
        if position < self.num_tokens(sequence):
            held = self._held[sequence]
            for idx, each in enumerate(held):  # one after the other: one copy more at a time
                held[idx] = np.ascontiguousarray(each[:, :, :position])

    def close(self) -> None:
        """Free the sequences; may be called twice."""
        self._held, self._logits = [], None
