"""Experts on another device: a server of llama.cpp's on the same processor, which has memory of its
own. The bits are those of llama.cpp on the host, however many experts lie where."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from haversack.devices.errors import BudgetError
from haversack.devices.llama import Row
from haversack.edge.plain_llama import PlainLlama
from haversack.tools.models.architectures import ARCHITECTURES, TinyShape
from haversack.tools.models.synth import TinyLayout

CTX, THREADS, PREFILL = 256, 1, 20
SHAPE = TinyShape(num_hidden_layers=2, num_experts=16, num_experts_per_tok=4)
TOKENS = np.random.default_rng(2).integers(0, SHAPE.vocab_size, 26).tolist()
LONG = np.random.default_rng(3).integers(0, SHAPE.vocab_size, 122).tolist()
SHARES = (0.25, 1.0)  # of the experts, on the device

Logits = npt.NDArray[np.float32]


def rows_of_few(model: Any, num_rows: int) -> Logits:
    """The logits of all tokens, in passes of so many rows."""
    context, found = model.engine.context, list[Logits]()
    context.forget(0)
    for start in range(0, len(TOKENS), num_rows):
        part = TOKENS[start : start + num_rows]
        context.compute([Row(token, start + i, 0, True) for i, token in enumerate(part)])
        found += [context.logits(row).copy() for row in range(len(part))]
        model.experts.check_integrity()
    return np.stack(found)


def assert_exact(path: Path, open_model: Any, device: Any, share: float = 0.25) -> None:
    """Single tokens, several rows and a batch; `share` of the experts on the host, and some and all
    on the device."""
    with PlainLlama(path, CTX, THREADS) as plain:
        single, batched = plain.logits(TOKENS, 1), plain.logits(TOKENS, PREFILL)
    for on_device in SHARES:
        there = {"device": device, "share": on_device, "fixed": True}
        model = open_model(path, share, tiers=[there])
        for num_rows in (1, 3):
            np.testing.assert_array_equal(rows_of_few(model, num_rows), single)
        np.testing.assert_array_equal(model.logits(TOKENS, PREFILL), batched)
        (counts,) = model.experts.tier_counts()
        assert 0 < counts.hits <= model.experts.hits
        assert (model.experts.misses == 0) == (on_device == 1.0)
        model.close()


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_architecture(
    architecture: str, tiny_model: Any, open_model: Any, rpc_device: Any
) -> None:
    layers = max(SHAPE.num_hidden_layers, ARCHITECTURES[architecture].least_layers)
    path = tiny_model(architecture, shape=replace(SHAPE, num_hidden_layers=layers))
    assert_exact(path, open_model, rpc_device)


@pytest.mark.parametrize("expert_type", ["BF16", "Q4_0", "Q4_K", "Q6_K", "IQ4_XS"])
def test_every_kind_of_block(
    expert_type: str, tiny_model: Any, open_model: Any, rpc_device: Any
) -> None:
    path = tiny_model("qwen3moe", expert_type=expert_type, shape=SHAPE)
    assert_exact(path, open_model, rpc_device)


@pytest.mark.parametrize("architecture", ["deepseek2", "gemma4"])
def test_fused_gate_and_up(
    architecture: str, tiny_model: Any, open_model: Any, rpc_device: Any
) -> None:
    path = tiny_model(architecture, layout=TinyLayout(fused=True), shape=SHAPE)
    assert_exact(path, open_model, rpc_device)


@pytest.mark.parametrize("architecture", ["qwen3moe", "phimoe", "gpt-oss"])
def test_biases_and_scales(
    architecture: str, tiny_model: Any, open_model: Any, rpc_device: Any
) -> None:
    """With scales llama.cpp hands over each of a layer's products in a call of its own."""
    path = tiny_model(architecture, layout=TinyLayout(all_optional=True), shape=SHAPE)
    assert_exact(path, open_model, rpc_device)


def test_two_pools(tiny_model: Any, open_model: Any, rpc_device: Any) -> None:
    layout = TinyLayout(down_type=("Q6_K", "Q4_K"), trunk_type="Q4_K")
    path = tiny_model("qwen3moe", expert_type="Q4_K", layout=layout, shape=SHAPE)
    assert_exact(path, open_model, rpc_device)


@pytest.mark.parametrize("architecture", ["qwen3moe", "llama4", "gpt-oss"])
def test_one_expert_a_token_and_waves(
    architecture: str, tiny_model: Any, open_model: Any, rpc_device: Any
) -> None:
    path = tiny_model(architecture, shape=TinyShape(num_experts=8, num_experts_per_tok=1))
    assert_exact(path, open_model, rpc_device, share=0.0)


@pytest.mark.parametrize("architecture", ["qwen3moe", "gpt-oss"])
def test_a_batch_that_a_device_computes_in_parts(
    architecture: str, tiny_model: Any, open_model: Any, rpc_device: Any
) -> None:
    """All experts lie there, and a graph takes 256 pairs of a row and an expert."""
    path, rows = tiny_model(architecture, shape=SHAPE), LONG[:120]
    assert len(rows) * SHAPE.num_experts_per_tok > 256
    with PlainLlama(path, CTX, THREADS) as plain:
        expected = plain.logits(LONG, len(rows))
    model = open_model(path, 0.25, tiers=[{"device": rpc_device, "share": 1.0, "fixed": True}])
    np.testing.assert_array_equal(model.logits(LONG, len(rows)), expected)


# --------------------------------------------------------- experts copied for a batch
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_batchs_experts_pass_through_a_device(
    architecture: str, tiny_model: Any, open_model: Any, rpc_device: Any
) -> None:
    layers = 1 + ARCHITECTURES[architecture].least_layers  # the last one computes a single row
    path = tiny_model(architecture, shape=replace(SHAPE, num_hidden_layers=layers))
    assert_streamed_exactly(path, open_model, rpc_device)


@pytest.mark.parametrize("layout", [TinyLayout(all_optional=True), TinyLayout(fused=True)])
def test_every_layout_passes_through_a_device(
    layout: TinyLayout, tiny_model: Any, open_model: Any, rpc_device: Any
) -> None:
    shape = replace(SHAPE, num_hidden_layers=3)
    path = tiny_model("deepseek2", layout=layout, expert_type="Q4_K", shape=shape)
    assert_streamed_exactly(path, open_model, rpc_device)


def test_a_batchs_experts_pass_through_a_device_while_others_are_read(
    tiny_model: Any, open_model: Any, rpc_device: Any
) -> None:
    path = tiny_model("qwen3moe", shape=replace(SHAPE, num_hidden_layers=4))
    assert_streamed_exactly(path, open_model, rpc_device, share=0.6)


def assert_streamed_exactly(path: Path, open_model: Any, device: Any, share: float = 1.0) -> None:
    """Batches and single tokens; `share` of the experts have a slot on the host, some lie on the
    device."""
    with PlainLlama(path, CTX, THREADS) as plain:
        expected = [plain.logits(TOKENS, PREFILL), plain.logits(LONG, 120)]
    there = {"device": device, "share": 0.25, "exclusive": True, "num_staging": 2}
    model = open_model(path, share, tiers=[there])
    model.stream_all()
    for _ in range(2):
        np.testing.assert_array_equal(model.logits(TOKENS, PREFILL), expected[0])
        np.testing.assert_array_equal(model.logits(LONG, 120), expected[1])
    (counts,) = model.experts.tier_counts()
    assert 0 < counts.streamed <= model.experts.hits
    assert model.num_unpinned() == model.num_slots()


def test_what_does_not_fit_is_refused(tiny_model: Any, open_model: Any, rpc_device: Any) -> None:
    there = {"device": rpc_device, "share": 1e7}
    with pytest.raises(BudgetError, match=r"RPC\S* does not give .*: lower --vram"):
        open_model(tiny_model("qwen3moe", shape=SHAPE), tiers=[there])


# ---------------------------------------------------------------------- promotion
def run_until_promoted(model: Any, num_experts: int, expected: Logits) -> None:
    """Compute passes, all with the right bits, until so many experts have moved up."""
    while model.experts.tier_counts()[0].promoted < num_experts:
        np.testing.assert_array_equal(model.logits(TOKENS, 1), expected)


@pytest.mark.parametrize("exclusive", [False, True])
@pytest.mark.parametrize("share", [0.0, 0.5])
def test_experts_move_up_while_passes_are_computed(
    share: float, exclusive: bool, tiny_model: Any, open_model: Any, rpc_device: Any
) -> None:
    path = tiny_model("qwen3moe", shape=SHAPE)
    with PlainLlama(path, CTX, THREADS) as plain:
        single, batched = plain.logits(TOKENS, 1), plain.logits(TOKENS, PREFILL)
    there = {"device": rpc_device, "share": 0.25, "exclusive": exclusive}
    model = open_model(path, share, tiers=[there])
    (num_slots,) = model.tiers[0].num_slots
    run_until_promoted(model, num_slots, single)
    for _ in range(2):
        np.testing.assert_array_equal(model.logits(TOKENS, PREFILL), batched)
        np.testing.assert_array_equal(rows_of_few(model, 3), single)
    (counts,) = model.experts.tier_counts()
    assert counts.hits > 0
    assert counts.moved_bytes == counts.promoted * model.geometry.layers[0].expert_bytes
    assert model.num_unpinned() == model.num_slots()
    on_both = [expert for expert in model.on_device() if expert in model.on_host()]
    assert not (exclusive and on_both)


def test_slots_change_while_experts_move_up(
    tiny_model: Any, open_model: Any, rpc_device: Any
) -> None:
    path = tiny_model("qwen3moe", shape=SHAPE)
    with PlainLlama(path, CTX, THREADS) as plain:
        single = plain.logits(TOKENS, 1)
    model = open_model(path, 0.5, tiers=[{"device": rpc_device, "share": 0.5}])
    floor, most = 2 * SHAPE.num_experts_per_tok, model.num_slots()
    for num_slots in (floor, most, floor + 1, most):
        model.experts.resize(0, num_slots)
        np.testing.assert_array_equal(model.logits(TOKENS, 1), single)
