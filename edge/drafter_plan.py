"""The memory of a model that drafts, planned before anything is allocated."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from haversack.cache.cross_vocab import tables_bytes
from haversack.devices.errors import BudgetError, ModelFileError
from haversack.devices.llama import ContextShape
from haversack.devices.llama_model import LlamaModel
from haversack.devices.needs import (
    LOGIT_BYTES,
    MemoryNeeds,
    memory_needs,
    product_scratch,
    thread_bytes,
    vocabulary_bytes,
)
from haversack.devices.system import host
from haversack.devices.units import format_bytes, format_need
from haversack.edge.draft_sizes import WHOLE, DraftSizes
from haversack.edge.onnx_ports import read_ports
from haversack.edge.onnx_vocabulary import setting, tokenizer_path
from haversack.quant.gguf import ModelGeometry, has_large_blocks, read_geometry

_BATCH_TOKENS = 32  # of a text that a drafter reads at once: it never reads much
ONNX = ".onnx"
# Measured: onnxruntime, tokenizers and a session take 25 MiB, and the pages of their libraries,
# which a meter of peaks cannot tell from memory, 27 MiB.
_RUNTIME_BYTES = 56 << 20
_TOKENIZER_FACTOR = 16  # measured: a tokenizer takes 14 to 16 times the bytes of its file
_MOST_LOGITS = 1 << 18  # of a vocabulary, where the file does not say it
_MOST_ONNX_TOKENS = 4096  # of a text, where nothing beside the file says it
_CONTEXT_BYTES = 17 << 17  # measured: what of a context and its first passes has no other name
SHORT_WINDOW_TOKENS = 512  # of a text, where the drafter's bytes would be experts' else


@dataclass(frozen=True)
class DrafterPlan:
    """What a model that drafts takes. Its context holds the last tokens of each text, `shape` says
    how many; that is less than the text's own where memory is short. `learner_bytes` are those of
    the process in which it learns, if it does."""

    path: Path
    shape: ContextShape
    weights_bytes: int
    kv_bytes: int
    compute_bytes: int
    num_tokens: int  # of its vocabulary
    pair_bytes: int
    learner_bytes: int = 0

    @property
    def table_bytes(self) -> int:
        """Return what the tables of two vocabularies take."""
        return tables_bytes(self.num_tokens, self.pair_bytes)

    @property
    def num_bytes(self) -> int:
        """Return all that it takes."""
        return sum(self.parts().values())

    def parts(self) -> dict[str, int]:
        """Return what it takes by name; parts taken in full come first."""
        learner = {"draft learner": self.learner_bytes} if self.learner_bytes else {}
        return {
            "draft weights": self.weights_bytes,
            "draft kv": self.kv_bytes,
            "draft compute": self.compute_bytes,
            "draft tables": self.table_bytes,
            **learner,
        }

    def to_dict(self) -> Mapping[str, Any]:
        """Return every figure as values that JSON can hold."""
        sizes = {f"{name[6:]}_bytes": value for name, value in self.parts().items()}
        return {"model": str(self.path), "window_tokens": self.shape.ctx_tokens, **sizes}

    def __str__(self) -> str:
        """Return its name and what it takes."""
        parts = ", ".join(f"{name[6:]} {format_bytes(num)}" for name, num in self.parts().items())
        return f"the drafter {self.path.name} takes {format_bytes(self.num_bytes)} ({parts})"


@dataclass(frozen=True)
class Drafting:
    """A model that drafts, if there is one, and the sizes of all that drafts come from."""

    drafter: DrafterPlan | None
    sizes: DraftSizes

    def num_bytes(self, target: ContextShape) -> int:
        """Return all that speculation takes beside texts of `target`'s shape."""
        drafter_bytes = 0 if self.drafter is None else self.drafter.num_bytes
        return drafter_bytes + self.sizes.ngram_bytes(target)

    def with_sizes(self, sizes: DraftSizes) -> "Drafting":
        """Return it with other sizes, but with the same window."""
        drafter = self.drafter and replace(self.drafter, pair_bytes=sizes.pair_bytes)
        return Drafting(drafter, sizes)


def plan_drafting(
    path: Path | None, target: ContextShape, sizes: DraftSizes, most_bytes: int | None = None
) -> Drafting:
    """Plan what drafts for texts of `target`'s shape, with the drafter at `path` or without one. It
    has the `sizes`, or smaller ones where it takes more than `most_bytes` else. Raises as
    `plan_drafter`, and BudgetError where the smallest take more."""
    found = _drafting(path, target, sizes)
    smaller = iter(sizes.smaller(target))
    while most_bytes is not None and found.num_bytes(target) > most_bytes:
        each = next(smaller, None)
        if each is None:
            raise _too_much(found, target, most_bytes)
        if each.window_tokens != found.sizes.window_tokens and found.drafter is not None:
            found = _drafting(path, target, each)
        else:
            found = found.with_sizes(each)
    return found


def _drafting(path: Path | None, target: ContextShape, sizes: DraftSizes) -> Drafting:
    return Drafting(None if path is None else plan_drafter(path, target, sizes), sizes)


def _too_much(least: Drafting, target: ContextShape, most_bytes: int) -> BudgetError:
    need_bytes = least.num_bytes(target)
    drafter = "" if least.drafter is None else f": {least.drafter}"
    knobs = "raise --speculate-memory, or give --speculate off"
    if least.drafter is not None:
        knobs = "raise --speculate-memory, or draft without a model (--speculate auto)"
    return BudgetError(
        f"speculation needs at least {format_need(need_bytes)}{drafter}; it may take"
        f" {format_bytes(most_bytes)}: {knobs}",
        need_bytes=need_bytes,
        have_bytes=most_bytes,
    )


def plan_drafter(path: Path, target: ContextShape, sizes: DraftSizes = WHOLE) -> DrafterPlan:
    """Plan a drafter for texts of `target`'s shape; reads its header and allocates nothing. Raises
    ModelFileError."""
    if path.suffix == ONNX:
        return _plan_onnx(path, target, sizes)
    geometry = read_geometry(path)
    model = LlamaModel(path, dry=True)
    try:
        if not model.drops_parts:
            raise ModelFileError(
                f"{path.name} has recurrent layers, which cannot drop a wrong token: it cannot"
                " draft, give another model"
            )
        window = min(target.ctx_tokens, model.trained_ctx_tokens)
        window = min(window, sizes.window_tokens or window)
        batch = min(_BATCH_TOKENS, window)
        shape = ContextShape(window, batch, target.threads, target.sequences, logit_rows=1)
        needs, num_tokens = memory_needs(model, shape), model.vocabulary.num_tokens
        own_bytes = vocabulary_bytes(model.vocabulary, geometry.header_bytes)
    finally:
        model.close()
        host.give_back_freed_memory()
    return DrafterPlan(
        path,
        shape,
        weights_bytes=geometry.trunk_bytes + geometry.expert_bytes + own_bytes,
        kv_bytes=needs.kv_bytes,
        compute_bytes=_compute_bytes(geometry, shape, needs) + 2 * LOGIT_BYTES * num_tokens,
        num_tokens=num_tokens,
        pair_bytes=sizes.pair_bytes,
        learner_bytes=sizes.learner_bytes,
    )


def _compute_bytes(geometry: ModelGeometry, shape: ContextShape, needs: MemoryNeeds) -> int:
    """Return the scratch of a drafter's context, which multiplies no experts of ours and few tokens
    at once."""
    num_bytes = needs.compute_bytes - needs.thread_bytes + _CONTEXT_BYTES
    if geometry.layers:
        num_experts = max(layer.num_experts for layer in geometry.layers)
        num_pairs = shape.batch_tokens * geometry.num_experts_per_tok
        num_bytes += product_scratch(num_experts, num_pairs)
    return num_bytes + thread_bytes(shape, has_large_blocks(geometry))


def _plan_onnx(path: Path, target: ContextShape, sizes: DraftSizes) -> DrafterPlan:
    """As `plan_drafter`. While onnxruntime loads a model it holds one weight twice, and while it
    computes it holds one text's keys and values twice, and rows of logits."""
    ports, tokenizer = read_ports(path), tokenizer_path(path)
    trained = setting(tokenizer, "max_position_embeddings")
    longest = trained if isinstance(trained, int) else _MOST_ONNX_TOKENS
    window = min(target.ctx_tokens, longest, sizes.window_tokens or target.ctx_tokens)
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
        num_tokens=num_logits,
        pair_bytes=sizes.pair_bytes,
    )
