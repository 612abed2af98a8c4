"""The engine under its slots: their number may change while a text is decoded."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from haversack import edge
from haversack.edge.plain_llama import PlainLlama
from haversack.edge.planner import streamed
from haversack.offload.pool import slot_bytes
from haversack.tools.models.architectures import TinyShape

SHAPE = TinyShape(num_hidden_layers=3, num_experts=16, num_experts_per_tok=4)
PREFILL, CTX, THREADS = 40, 128, 2
TOKENS = np.random.default_rng(1).integers(0, SHAPE.vocab_size, PREFILL + 60).tolist()
FLOOR, ALL = 2 * SHAPE.num_experts_per_tok, SHAPE.num_hidden_layers * SHAPE.num_experts


@pytest.mark.parametrize("warm", [False, True])
def test_slots_grow_and_shrink_between_passes(tiny_model: Any, trunk_dir: Path, warm: bool) -> None:
    path = tiny_model("qwen3moe", shape=SHAPE)
    planned = streamed(edge.plan(path, ram="2GiB", ctx=CTX, threads=THREADS), 0.5)
    options = edge.LoadOptions(cache_dir=trunk_dir, warm_start=warm)
    if warm:
        with edge.load(planned, options=options) as model:
            model.logits(TOKENS, PREFILL)
    numbers = (ALL, FLOOR, 20, ALL, 30, 21, FLOOR)
    rows: list[Any] = []
    with edge.load(planned, options=options) as model:
        experts = model._loop.engine.experts
        assert experts is not None
        (pool,) = experts.pools
        address = pool.address(0)
        experts.resize(0, FLOOR)
        for row in model.iter_logits(TOKENS, PREFILL):
            rows.append(row.copy())
            experts.resize(0, numbers[len(rows) % len(numbers)])
            model.check_integrity()
            assert pool.address(0) == address
            assert pool.resident_bytes <= pool.num_slots * slot_bytes(planned.pools[0].shape)
        assert pool.resident_bytes > 0
    with PlainLlama(path, CTX, THREADS) as plain:
        np.testing.assert_array_equal(np.stack(rows), plain.logits(TOKENS, PREFILL))
