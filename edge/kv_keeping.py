"""Keeping sequences: what a context holds of a text, in a file, and back with the same bits."""

from functools import cached_property
from pathlib import Path

from haversack.devices.errors import PromptError
from haversack.devices.kv_state import KvStates
from haversack.devices.llama import build_name, system_info
from haversack.devices.llama_model import LlamaModel
from haversack.edge.model_plan import Plan
from haversack.edge.sequence import TokenSequence
from haversack.offload.kv_file import KvAbout, opened_kv, write_kv
from haversack.quant.identity import content_name

_ABOUT_BYTES = 8192  # that a file says of itself, at most
_ABOUT_TOKEN_BYTES = 16  # of them for each token: a number, and maybe one where a batch ends


class KvKeeper:
    """Writes the sequences of a model to files and reads them back."""

    def __init__(self, planned: Plan, model: LlamaModel) -> None:
        self._plan = planned
        self._states = KvStates(model, planned.shape.sequences)

    @property
    def why_not(self) -> str:
        """Why nothing can be kept; empty if it can."""
        return self._states.why_not

    @cached_property
    def bits(self) -> dict[str, str]:
        """What decides the bits of keys and values, by name. Raises StorageError if the model's
        file cannot be read."""
        shape = self._plan.shape
        slots = [each.held for each in self._plan.devices if each.is_used]
        devices = {"--vram": f"{', '.join(slots)} ({self._plan.placement})"} if slots else {}
        return {
            "model": f"{self._plan.path.name} ({content_name(self._plan.geometry)})",
            "--kv-type": shape.kv_type,
            "--fidelity": self._plan.fidelity,
            "--threads": str(shape.threads),
            "--batch": str(shape.batch_tokens),
            "llama.cpp": f"{build_name()} on {system_info().strip()}",
            **devices,
        }

    def num_bytes(self, sequence: TokenSequence) -> int:
        """Return the most bytes that a file of the sequence takes now."""
        token_bytes = _ABOUT_TOKEN_BYTES * len(sequence.tokens)
        return (
            self._states.num_bytes(sequence.context, sequence.number) + token_bytes + _ABOUT_BYTES
        )

    def write(self, sequence: TokenSequence, path: Path) -> None:
        """Write what the context holds of the sequence, whole or not at all. Raises PromptError if
        it cannot be kept, StorageError."""
        if self.why_not:
            raise PromptError(f"the KV cache is not kept: {self.why_not}")
        context, number = sequence.context, sequence.number
        about = KvAbout(self.bits, sequence.tokens, sequence.batch_ends)
        num_bytes = self._states.num_bytes(context, number)
        write_kv(path, about, num_bytes, lambda into: self._states.read(context, number, into))

    def refuse(self, about: KvAbout) -> None:
        """Raise PromptError if what was kept was computed in another way than this model computes,
        or does not fit into its context."""
        difference = about.difference(self.bits)
        if difference:
            raise PromptError(f"the KV cache cannot be used: {difference}")
        ctx_tokens = self._plan.shape.ctx_tokens
        if len(about.tokens) > ctx_tokens:
            raise PromptError(
                f"the KV cache has {len(about.tokens)} tokens, the context holds {ctx_tokens}:"
                " raise --ctx"
            )

    def read(self, sequence: TokenSequence, path: Path) -> None:
        """Have the sequence hold what was written to `path`, in place of what it held. Raises
        PromptError as `refuse`, StorageError if the file is damaged."""
        with opened_kv(path) as (about, state):
            self.refuse(about)
            sequence.keep(0)
            self._states.put(sequence.context, sequence.number, state)
            sequence.adopt(about.tokens, about.batch_ends)
