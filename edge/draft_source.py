"""What drafts need of a model, whatever computes it: llama.cpp (a GGUF) or onnxruntime (ONNX)."""

from collections.abc import Sequence
from typing import Protocol

from haversack.devices.errors import BudgetError
from haversack.devices.llama import LlamaContext, Row
from haversack.devices.llama_model import LlamaModel
from haversack.devices.memory import anonymous_bytes
from haversack.devices.units import format_bytes
from haversack.edge.drafter_plan import ONNX, DrafterPlan
from haversack.edge.onnx_context import OnnxContext, OnnxModel
from haversack.edge.sequence import Logits


class DraftVocabulary(Protocol):
    """A drafter's tokens, as `Vocabulary`."""

    num_tokens: int
    has_text: bool

    @property
    def adds_space(self) -> bool: ...

    def piece(self, token: int, *, special: bool = False) -> bytes: ...

    def ends(self, token: int) -> bool: ...

    def tokenize(self, text: str, *, add_special: bool = True) -> list[int]: ...

    def cut(self, data: bytes) -> list[int]: ...


class DraftingModel(Protocol):
    """A drafter's weights, as `LlamaModel`."""

    @property
    def vocabulary(self) -> DraftVocabulary: ...

    def close(self) -> None: ...


class DraftingContext(Protocol):
    """Sequences of a drafter's tokens, as `LlamaContext`."""

    def compute(self, rows: Sequence[Row]) -> None: ...

    def borrow_logits(self) -> Logits: ...

    def forget(self, position: int, sequence: int = 0) -> None: ...

    def close(self) -> None: ...


def open_drafter(planned: DrafterPlan) -> tuple[DraftingModel, DraftingContext]:
    """Load the model and make its context; close the context first. Raises ModelFileError,
    HaversackError, KeyboardInterrupt; nothing is left behind then."""
    if planned.path.suffix == ONNX:
        return _open_onnx(planned)
    model = LlamaModel(planned.path)
    try:
        return model, LlamaContext(model, planned.shape)
    except BaseException:
        model.close()
        raise


def _open_onnx(planned: DrafterPlan) -> tuple[OnnxModel, OnnxContext]:
    """Raises BudgetError where onnxruntime takes more than was planned: it may keep weights in
    another form than the file's."""
    before_bytes = anonymous_bytes()
    model = OnnxModel(planned.path, planned.shape.threads)
    taken_bytes = anonymous_bytes() - before_bytes
    if taken_bytes <= planned.num_bytes - planned.kv_bytes:
        return model, OnnxContext(model, planned.shape)
    model.close()
    planned_bytes = planned.num_bytes - planned.kv_bytes
    raise BudgetError(
        f"{planned.path.name} takes {format_bytes(taken_bytes)} of memory once it is loaded, where"
        f" {format_bytes(planned_bytes)} were planned: give it as a GGUF, or another drafter",
        need_bytes=taken_bytes,
        have_bytes=planned_bytes,
    )
