"""What a context holds of a sequence is put back with the same bits."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from haversack.devices.errors import HaversackError, StorageError
from haversack.devices.kv_state import KvStates
from haversack.devices.llama import ContextShape, LlamaContext, Row
from haversack.devices.llama_model import LlamaModel

TinyModel = Callable[..., Path]
# gpt-oss has layers that see a window of 128 tokens, qwen3next has recurrent ones.
KINDS = [("qwen3moe", "f16"), ("qwen3moe", "q4_0"), ("gpt-oss", "f16"), ("qwen3next", "f16")]
TOKENS = np.random.default_rng(0).integers(5, 250, 560).tolist()
HELD = 530  # from 512 tokens on a row's attention is split, and its sums depend on where cells lie


def context_of(model: LlamaModel, kv_type: str) -> LlamaContext:
    return LlamaContext(model, ContextShape(768, 128, 2, 1, kv_type))


def logits_after(context: LlamaContext, tokens: list[int]) -> list[np.ndarray]:
    rows = []
    for token in tokens:
        context.decode([token])
        rows.append(context.logits())
    return rows


@pytest.mark.parametrize(("architecture", "kv_type"), KINDS)
def test_it_goes_on_with_the_same_bits(
    architecture: str, kv_type: str, tiny_model: TinyModel
) -> None:
    model = LlamaModel(tiny_model(architecture))
    states, context = KvStates(model, 1), context_of(model, kv_type)
    for first in range(0, HELD, 128):
        context.decode(TOKENS[first : min(first + 128, HELD)])
    state = np.empty(states.num_bytes(context, 0), np.uint8)
    states.read(context, 0, state)
    expected = logits_after(context, TOKENS[HELD:])
    context.close()
    other = context_of(model, kv_type)
    other.decode([7] * 20)  # what it held before is gone
    states.put(other, 0, state)
    assert other.num_tokens() == HELD
    assert np.array_equal(logits_after(other, TOKENS[HELD:]), expected)
    other.close()
    model.close()


def test_what_llama_cpp_refuses_leaves_nothing(tiny_model: TinyModel) -> None:
    model = LlamaModel(tiny_model())
    states, context = KvStates(model, 1), context_of(model, "f16")
    context.decode([1, 2, 3])
    with pytest.raises(StorageError, match="does not take the KV cache back"):
        states.put(context, 0, np.zeros(100, np.uint8))
    assert context.num_tokens() == 0
    context.close()
    model.close()


def test_a_window_and_several_sequences_are_no_pair(tiny_model: TinyModel) -> None:
    model = LlamaModel(tiny_model("gpt-oss"))
    assert not KvStates(model, 1).why_not
    assert "layers that see a window" in KvStates(model, 2).why_not
    model.close()


def two_sequences(model: LlamaModel) -> LlamaContext:
    return LlamaContext(model, ContextShape(256, 128, 1, 2))


@pytest.mark.parametrize("architecture", ["qwen3moe", "gpt-oss"])
def test_a_sequence_is_copied(architecture: str, tiny_model: TinyModel) -> None:
    """Also cut where the other text goes on in another way."""
    model = LlamaModel(tiny_model(architecture))
    context = two_sequences(model)
    context.decode(TOKENS[:100], 0)
    context.decode(TOKENS[200:220], 1)
    context.copy(0, 1)
    context.forget(70, 1)
    assert (context.num_tokens(0), context.num_tokens(1)) == (100, 70)
    context.decode(TOKENS[300:310], 1)
    copied = context.logits()
    context.forget(70, 0)
    context.decode(TOKENS[300:310], 0)
    assert np.array_equal(context.logits(), copied)
    context.close()
    model.close()


def test_a_copy_is_made_also_after_a_pass_that_llama_cpp_refused(tiny_model: TinyModel) -> None:
    """It looks at the tokens before it makes copies."""
    model = LlamaModel(tiny_model())
    states, copied = KvStates(model, 2), list[bytes]()
    for is_refused in (False, True):
        context = two_sequences(model)
        context.decode(TOKENS[:100], 0)
        context.copy(0, 1)
        if is_refused:
            with pytest.raises(HaversackError, match="invalid token"):
                context.compute([Row(1 << 30, 100, 1, wants_logits=True)])
        state = np.empty(states.num_bytes(context, 1), np.uint8)
        states.read(context, 1, state)
        copied.append(state.tobytes())
        context.close()
    assert copied[0] == copied[1]
    model.close()


def test_a_copy_is_made_before_bytes_are_read_or_put(tiny_model: TinyModel) -> None:
    """llama.cpp copies the bytes at the beginning of its next pass, and none comes in between."""
    model = LlamaModel(tiny_model())
    states, context = KvStates(model, 2), two_sequences(model)
    context.decode(TOKENS[:100], 0)
    expected = logits_after(context, TOKENS[100:103])
    context.forget(100, 0)
    context.copy(0, 1)
    state = np.empty(states.num_bytes(context, 1), np.uint8)
    states.read(context, 1, state)
    assert (context.num_tokens(0), context.num_tokens(1)) == (100, 100)

    other = two_sequences(model)
    other.decode(TOKENS[300:400], 0)
    other.copy(0, 1)
    states.put(other, 1, state)  # a copy that came later would replace it
    other.decode(TOKENS[100:101], 1)
    assert np.array_equal(other.logits(), expected[0])
    for each in (context, other):
        each.close()
    model.close()
