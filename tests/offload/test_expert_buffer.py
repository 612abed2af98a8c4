"""The expert buffer keeps llama.cpp from loading experts, and it computes with ours."""

import re
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from haversack.devices.ggml import GgufHeader, GraphNode
from haversack.devices.llama import ContextShape, LlamaContext
from haversack.devices.llama_model import LlamaModel
from haversack.devices.memory import anonymous_bytes
from haversack.offload.expert_buffer import ExpertBuffer
from haversack.tools.models.synth import TinyShape

PATTERN = r"ffn_(gate|up|down|gate_up)_exps\.weight$"
SMALL = TinyShape(num_hidden_layers=2, num_experts=6, vocab_size=64)
SHAPE = ContextShape(ctx_tokens=64, batch_tokens=16, threads=1)
TOKENS = [1, 5, 9, 2, 7, 3]


def logits(model: LlamaModel) -> npt.NDArray[np.float32]:
    """Return the logits after a batch and after two single tokens, (3, vocabulary)."""
    context = LlamaContext(model, SHAPE)
    rows: list[npt.NDArray[np.float32]] = []
    for tokens in (TOKENS[:4], TOKENS[4:5], TOKENS[5:]):
        context.decode(tokens)
        rows.append(context.logits())
    context.close()
    return np.stack(rows)


def test_every_weight_that_matches_is_kept_with_its_shape(
    tiny_model: Callable[..., Path],
) -> None:
    path = tiny_model("gpt-oss", shape=SMALL)
    buffer = ExpertBuffer(PATTERN)
    model = LlamaModel(path, experts=buffer)
    with GgufHeader(path) as header:
        tensors = {tensor.name: tensor for tensor in header.tensors}
    kinds = ("gate", "up", "down")
    names = {f"blk.{layer}.ffn_{kind}_exps.weight" for layer in range(2) for kind in kinds}
    assert set(buffer.weights()) == names
    assert "blk.0.ffn_up_exps.bias" in tensors  # is loaded as llama.cpp loads it
    for name, address in buffer.weights().items():
        weight = GraphNode(address)
        assert weight.shape == tensors[name].shape
        assert weight.type_id == tensors[name].type_id
    model.close()
    buffer.close()
    buffer.close()  # may be called twice


def bytes_read() -> int:
    """Return the bytes that this process has read from files since it began."""
    lines = Path("/proc/self/io").read_text(encoding="utf-8").splitlines()
    return int(dict(line.split(": ") for line in lines)["rchar"])


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc/self/io")
def test_experts_take_no_memory_and_are_not_read(tiny_model: Callable[..., Path]) -> None:
    shape = TinyShape(num_hidden_layers=2, num_experts=64, vocab_size=64)
    path = tiny_model("qwen3moe", shape=shape)
    with GgufHeader(path) as header:
        trunk_bytes = sum(t.num_bytes for t in header.tensors if not re.search(PATTERN, t.name))
    assert path.stat().st_size > 48e6 > 20 * trunk_bytes
    before, read_before = anonymous_bytes(), bytes_read()
    buffer = ExpertBuffer(PATTERN)
    model = LlamaModel(path, experts=buffer)
    assert anonymous_bytes() - before < trunk_bytes + 8e6
    assert bytes_read() - read_before < trunk_bytes + 8e6
    model.close()
    buffer.close()


def test_a_pattern_that_nothing_matches(tiny_model: Callable[..., Path]) -> None:
    path = tiny_model("qwen3moe", shape=SMALL)
    plain = LlamaModel(path)
    expected = logits(plain)
    plain.close()
    buffer = ExpertBuffer(r"no_such_weight")
    model = LlamaModel(path, experts=buffer)
    assert buffer.weights() == {}
    assert (logits(model) == expected).all()
    model.close()
    buffer.close()
