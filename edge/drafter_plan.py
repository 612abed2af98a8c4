"""The memory of a model that drafts, planned before anything is allocated."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from haversack.cache.cross_vocab import STORE_BYTES, map_bytes
from haversack.devices.errors import ModelFileError
from haversack.devices.llama import ContextShape, LlamaModel
from haversack.devices.needs import LOGIT_BYTES, VOCABULARY_FACTOR, memory_needs
from haversack.devices.system import host
from haversack.devices.units import format_bytes
from haversack.edge.onnx_ports import read_ports
from haversack.edge.onnx_vocabulary import setting, tokenizer_path
from haversack.quant.gguf import read_geometry

_BATCH_TOKENS = 32  # of a text that a drafter reads at once: it never reads much
ONNX = ".onnx"
# Measured: onnxruntime, tokenizers and a session take 25 MiB, and the pages of their libraries,
# which a meter of peaks cannot tell from memory, 27 MiB.
_RUNTIME_BYTES = 56 << 20
_TOKENIZER_FACTOR = 16  # measured: a tokenizer takes 14 to 16 times the bytes of its file
_MOST_LOGITS = 1 << 18  # of a vocabulary, where the file does not say it
_MOST_ONNX_TOKENS = 4096  # of a text, where nothing beside the file says it
SHORT_WINDOW_TOKENS = 512  # of a text, where the drafter's bytes would be experts' else


@dataclass(frozen=True)
class DrafterPlan:
    """What a model that drafts takes. Its context holds the last tokens of each text, `shape` says
    how many; that is less than the text's own where memory is short."""

    path: Path
    shape: ContextShape
    weights_bytes: int
    kv_bytes: int
    compute_bytes: int
    table_bytes: int

    @property
    def num_bytes(self) -> int:
        """Return all that it takes."""
        return sum(self.parts().values())

    def parts(self) -> dict[str, int]:
        """Return what it takes by name; parts taken in full come first."""
        return {
            "draft weights": self.weights_bytes,
            "draft kv": self.kv_bytes,
            "draft compute": self.compute_bytes,
            "draft tables": self.table_bytes,
        }

    def to_dict(self) -> Mapping[str, Any]:
        """Return every figure as values that JSON can hold."""
        sizes = {name: value for name, value in vars(self).items() if name.endswith("_bytes")}
        return {"model": str(self.path), "window_tokens": self.shape.ctx_tokens, **sizes}

    def __str__(self) -> str:
        parts = ", ".join(f"{name[6:]} {format_bytes(num)}" for name, num in self.parts().items())
        return f"the drafter {self.path.name} takes {format_bytes(self.num_bytes)} ({parts}) and"


def plan_drafter(path: Path, target: ContextShape, most_tokens: int | None = None) -> DrafterPlan:
    """Plan a drafter for texts of `target`'s shape, of which its context holds the last
    `most_tokens`, or all; reads its header and allocates nothing. Raises ModelFileError."""
    if path.suffix == ONNX:
        return _plan_onnx(path, target, most_tokens)
    geometry = read_geometry(path)
    model = LlamaModel(path, dry=True)
    try:
        if not model.drops_parts:
            raise ModelFileError(
                f"{path.name} has recurrent layers, which cannot drop a wrong token: it cannot"
                " draft, give another model"
            )
        window = min(target.ctx_tokens, model.trained_ctx_tokens, most_tokens or target.ctx_tokens)
        batch = min(_BATCH_TOKENS, window)
        shape = ContextShape(window, batch, target.threads, target.sequences)
        needs, num_tokens = memory_needs(model, shape), model.vocabulary.num_tokens
    finally:
        model.close()
        host.give_back_freed_memory()
    own_bytes = VOCABULARY_FACTOR * geometry.header_bytes
    return DrafterPlan(
        path,
        shape,
        weights_bytes=geometry.trunk_bytes + geometry.expert_bytes + own_bytes,
        kv_bytes=needs.kv_bytes,
        compute_bytes=needs.compute_bytes + 2 * LOGIT_BYTES * num_tokens,
        table_bytes=map_bytes(num_tokens) + STORE_BYTES,
    )


def _plan_onnx(path: Path, target: ContextShape, most_tokens: int | None) -> DrafterPlan:
    """As `plan_drafter`. While onnxruntime loads a model it holds one weight twice, and while it
    computes it holds one text's keys and values twice, and rows of logits."""
    ports, tokenizer = read_ports(path), tokenizer_path(path)
    trained = setting(tokenizer, "max_position_embeddings")
    longest = trained if isinstance(trained, int) else _MOST_ONNX_TOKENS
    window = min(target.ctx_tokens, longest, most_tokens or target.ctx_tokens)
    batch, num_logits = min(_BATCH_TOKENS, window), ports.num_logits or _MOST_LOGITS
    text_bytes = window * ports.token_bytes
    pass_bytes = text_bytes + 3 * batch * LOGIT_BYTES * num_logits
    own_bytes = _RUNTIME_BYTES + _TOKENIZER_FACTOR * tokenizer.stat().st_size
    return DrafterPlan(
        path,
        ContextShape(window, batch, target.threads, target.sequences),
        weights_bytes=ports.weights_bytes,
        kv_bytes=target.sequences * text_bytes,
        compute_bytes=own_bytes + max(ports.largest_bytes, pass_bytes),
        table_bytes=map_bytes(num_logits) + STORE_BYTES,
    )
