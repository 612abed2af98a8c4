"""Logits equal plain llama.cpp's to the bit, for any model and any number of slots."""

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from haversack import edge
from haversack.devices.llama import MOST_ROWS
from haversack.edge.plain_llama import PlainLlama
from haversack.edge.planner import streamed
from haversack.tools.models.architectures import ARCHITECTURES, TinyShape
from haversack.tools.models.synth import TinyLayout

PREFILL, DECODED, CTX, THREADS = 100, 64, 256, 2
SHAPE = TinyShape(num_experts=16, num_experts_per_tok=4)
TOKENS = np.random.default_rng(0).integers(0, SHAPE.vocab_size, PREFILL + DECODED).tolist()
SHARES = [pytest.param(0.0, id="floor"), 0.25, 1.0]

_plain: dict[Path, npt.NDArray[np.float32]] = {}


def plain_logits(path: Path) -> npt.NDArray[np.float32]:
    """Return what plain llama.cpp computes, once for each model."""
    if path not in _plain:
        with PlainLlama(path, CTX, THREADS) as model:
            _plain[path] = model.logits(TOKENS, PREFILL)
    return _plain[path]


def assert_exact(path: Path, share: float, trunk_dir: Path) -> edge.Stats:
    """Load `path` with slots for `share` of its experts, none filled, and compare every logit."""
    planned = streamed(edge.plan(path, ram="2GiB", ctx=CTX, threads=THREADS), share)
    options = edge.LoadOptions(cache_dir=trunk_dir, warm_start=False)
    with edge.load(planned, options=options) as model:
        logits = model.logits(TOKENS, prefill=PREFILL)
        model.check_integrity()
        stats = model.stats()
    assert logits.shape == (DECODED + 1, SHAPE.vocab_size)
    np.testing.assert_array_equal(logits, plain_logits(path))
    return stats


@pytest.mark.parametrize("share", SHARES)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_architecture(
    architecture: str, share: float, tiny_model: Any, trunk_dir: Path
) -> None:
    path = tiny_model(architecture, shape=SHAPE)
    stats = assert_exact(path, share, trunk_dir)
    assert stats.misses > 0
    most_bytes = max(layer.expert_bytes for layer in edge.plan(path, ram="2GiB").geometry.layers)
    num_asked = stats.misses + stats.prefetched
    assert stats.bytes_read <= num_asked * most_bytes  # nothing is read that nobody asked for


@pytest.mark.parametrize("share", SHARES)
@pytest.mark.parametrize(
    "expert_type", ["F32", "BF16", "Q8_0", "Q4_0", "Q2_K", "Q4_K", "Q6_K", "MXFP4", "IQ4_XS"]
)
def test_every_kind_of_block(
    expert_type: str, share: float, tiny_model: Any, trunk_dir: Path
) -> None:
    path = tiny_model("qwen3moe", expert_type=expert_type, shape=SHAPE)
    assert_exact(path, share, trunk_dir)


@pytest.mark.parametrize("share", SHARES)
def test_layers_of_different_types_have_pools_of_their_own(
    share: float, tiny_model: Any, trunk_dir: Path
) -> None:
    layout = TinyLayout(down_type=("Q6_K", "Q4_K"), trunk_type="Q4_K")
    path = tiny_model("qwen3moe", expert_type="Q4_K", layout=layout, shape=SHAPE)
    assert len(streamed(edge.plan(path, ram="2GiB"), share).pools) == 2
    assert_exact(path, share, trunk_dir)


@pytest.mark.parametrize("share", SHARES)
def test_experts_of_any_byte_size(share: float, tiny_model: Any, trunk_dir: Path) -> None:
    shape = TinyShape(num_experts=16, num_experts_per_tok=4, moe_intermediate_size=160)
    path = tiny_model("qwen3moe", expert_type="Q8_0", shape=shape)
    matrices = edge.plan(path, ram="2GiB").geometry.layers[0].matrices
    assert all(matrix.expert_bytes % 4096 for matrix in matrices)
    assert_exact(path, share, trunk_dir)


@pytest.mark.parametrize("architecture", ["deepseek2", "qwen3next", "gemma4"])
def test_fused_gate_and_up(architecture: str, tiny_model: Any, trunk_dir: Path) -> None:
    path = tiny_model(architecture, layout=TinyLayout(fused=True), shape=SHAPE)
    kinds = [matrix.kind for matrix in edge.plan(path, ram="2GiB").geometry.layers[0].matrices]
    assert kinds == ["gate_up", "down"]
    assert_exact(path, 0.25, trunk_dir)


@pytest.mark.parametrize("architecture", ["qwen3moe", "phimoe", "gpt-oss", "llama"])
def test_per_expert_biases_and_scales(architecture: str, tiny_model: Any, trunk_dir: Path) -> None:
    path = tiny_model(architecture, layout=TinyLayout(all_optional=True), shape=SHAPE)
    assert_exact(path, 0.25, trunk_dir)


def test_split_model(tiny_model: Any, trunk_dir: Path) -> None:
    path = tiny_model("qwen2moe", layout=TinyLayout(num_splits=3), shape=SHAPE)
    assert_exact(path, 0.25, trunk_dir)


def logits_of(plain: PlainLlama, tokens: list[int], prefill: int) -> npt.NDArray[np.float32]:
    """What is expected: in a pass of a few rows each has the bits of a single token."""
    if prefill <= MOST_ROWS:
        return plain.logits(tokens, 1)[prefill - 1 :]
    return plain.logits(tokens, prefill)


@pytest.mark.parametrize("prefill", [1, 2, 7, 33])
def test_batches_of_any_length(prefill: int, tiny_model: Any, trunk_dir: Path) -> None:
    path, tokens = tiny_model("qwen3moe", expert_type="Q4_K", shape=SHAPE), TOKENS[:40]
    with PlainLlama(path, CTX, THREADS) as plain:
        expected = logits_of(plain, tokens, prefill)
    planned = streamed(edge.plan(path, ram="2GiB", ctx=CTX, threads=THREADS), 0.0)
    with edge.load(planned, options=edge.LoadOptions(cache_dir=trunk_dir)) as model:
        np.testing.assert_array_equal(model.logits(tokens, prefill=prefill), expected)
        np.testing.assert_array_equal(model.logits(tokens, prefill=prefill), expected)


def test_everything_in_memory_needs_no_hook(tiny_model: Any, trunk_dir: Path) -> None:
    path = tiny_model("qwen3moe", shape=SHAPE)
    planned = edge.plan(path, ram="2GiB", ctx=CTX, threads=THREADS)
    assert planned.mode == "resident"
    with edge.load(planned, options=edge.LoadOptions(cache_dir=trunk_dir)) as model:
        np.testing.assert_array_equal(model.logits(TOKENS, prefill=PREFILL), plain_logits(path))
        assert model.stats().misses == 0


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_one_expert_per_token_at_the_floor(
    architecture: str, tiny_model: Any, trunk_dir: Path
) -> None:
    """Two slots: of a batch's experts one stays, and all others go through a single slot."""
    path = tiny_model(architecture, shape=TinyShape(num_experts=8, num_experts_per_tok=1))
    assert_exact(path, 0.0, trunk_dir)


@pytest.mark.parametrize("num_experts_per_tok", [1, 2, 3, 8])
def test_the_floor_whatever_a_token_uses(
    num_experts_per_tok: int, tiny_model: Any, trunk_dir: Path
) -> None:
    """From one expert per token to all of them, and batches that find any slots filled."""
    shape = TinyShape(num_experts=8, num_experts_per_tok=num_experts_per_tok)
    path, tokens = tiny_model("qwen3moe", expert_type="Q4_K", shape=shape), TOKENS[:30]
    floor = streamed(edge.plan(path, ram="2GiB", ctx=CTX, threads=THREADS), 0.0)
    assert [pool.num_slots for pool in floor.pools] == [2 * num_experts_per_tok]
    options = edge.LoadOptions(cache_dir=trunk_dir, warm_start=False)
    with PlainLlama(path, CTX, THREADS) as plain, edge.load(floor, options=options) as model:
        for prefill in (1, 30, 7, 1, 30, 30):
            expected = logits_of(plain, tokens, prefill)
            np.testing.assert_array_equal(model.logits(tokens, prefill), expected)
            model.check_integrity()
