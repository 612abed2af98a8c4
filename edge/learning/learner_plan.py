"""The memory of the process in which a drafter learns, planned before it is started."""

from importlib.util import find_spec
from pathlib import Path

from haversack.devices.errors import BudgetError, HaversackError, ModelFileError
from haversack.devices.units import format_bytes
from haversack.edge.drafter_plan import ONNX
from haversack.edge.learning.decoder_file import DecoderFile, read_decoder
from haversack.edge.learning.lessons import CONTEXT_TOKENS, NEW_TOKENS

RANK = 32  # of the changes
LINEAR = ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down")

_MOST_BYTES = 2 << 30
_PROCESS_BYTES = 256 << 20  # measured: Python, PyTorch and what it sets up take 220 MiB
_FLOAT_BYTES, _HALF_BYTES = 4, 2
_COPIES = 5  # of the changes: values, gradients, two means of them, and what is written
_KEPT_WIDTHS = 10, 5  # of a layer: numbers kept for its gradient, in hidden and in inner widths
_LOGIT_COPIES = 4
_SPLIT_FACTOR = 1.5  # draft tokens for a token of the text, mostly fewer


def num_changed(decoder: DecoderFile) -> int:
    """Return how many values the changes of a decoder have."""
    sides = [
        sum(decoder.tensors[f"blk.{layer}.{kind}.weight"].shape[:2])
        for layer in range(decoder.num_layers)
        for kind in LINEAR
    ]
    return RANK * sum(sides)


def learner_bytes(path: Path) -> int:
    """Return the most memory that learning takes: of its process, and of what was learnt in this
    one. Raises ModelFileError for a drafter that cannot learn, HaversackError without PyTorch, and
    BudgetError where it would take more than 2 GiB."""
    if path.suffix == ONNX:
        raise ModelFileError(f"{path.name} cannot learn: give the drafter as a GGUF")
    decoder = read_decoder(path)
    if find_spec("torch") is None:
        raise HaversackError(
            "a drafter that learns needs the package torch, which is not installed:"
            " pip install 'haversack[train]'"
        )
    need_bytes = process_bytes(decoder) + 2 * _HALF_BYTES * num_changed(decoder)
    if need_bytes > _MOST_BYTES:
        raise BudgetError(
            f"{path.name} needs {format_bytes(need_bytes)} to learn, more than"
            f" {format_bytes(_MOST_BYTES)}: give a smaller drafter, or leave out +learn",
            need_bytes=need_bytes,
            have_bytes=_MOST_BYTES,
        )
    return need_bytes


def process_bytes(decoder: DecoderFile) -> int:
    """Return the most memory that the process takes in which a decoder learns."""
    num_tokens = int(_SPLIT_FACTOR * (CONTEXT_TOKENS + NEW_TOKENS))
    wide, inner = _KEPT_WIDTHS
    widths = wide * decoder.hidden_size + inner * decoder.intermediate_size
    kept = decoder.num_layers * (widths + 4 * decoder.num_heads * num_tokens) * num_tokens
    vocab_size = decoder.tensors["token_embd.weight"].shape[1]
    logits = _LOGIT_COPIES * int(_SPLIT_FACTOR * NEW_TOKENS) * vocab_size
    numbers = decoder.num_elements + _COPIES * num_changed(decoder) + kept + logits
    return _PROCESS_BYTES + _FLOAT_BYTES * numbers
