"""Rows of one pass have the bits that each has alone, whatever stands beside them."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from haversack import edge
from haversack.devices import llama as llama_module
from haversack.devices.llama import ContextShape, LlamaContext, Row
from haversack.devices.trunk_placement import TrunkPlacement
from haversack.edge.planner import streamed
from haversack.offload.engine import Engine, open_resident
from haversack.tools.models.architectures import ARCHITECTURES, TinyShape
from haversack.tools.models.synth import TinyLayout

Logits = npt.NDArray[np.float32]

CTX, BATCH, THREADS = 768, 64, 2
PREFILL, NUM_ROWS = 486, 54  # from 512 tokens on llama.cpp attends otherwise for a single row
VOCABULARY = TinyShape().vocab_size
TOKENS = np.random.default_rng(0).integers(0, VOCABULARY, (3, CTX))
Q4_K = {"expert_type": "Q4_K", "layout": TinyLayout(trunk_type="Q4_K")}


@contextmanager
def opened(path: Path, num_sequences: int = 1, kv_type: str = "f16") -> Iterator[Engine]:
    shape = ContextShape(CTX, BATCH, THREADS, num_sequences, kv_type)
    engine = open_resident(path, shape)
    try:
        yield engine
    finally:
        engine.close()


def prefilled(context: LlamaContext, tokens: Sequence[int], sequence: int = 0) -> LlamaContext:
    for first in range(0, len(tokens), BATCH):
        context.decode([int(token) for token in tokens[first : first + BATCH]], sequence)
    return context


def row_of(sequence: int, position: int) -> Row:
    return Row(int(TOKENS[sequence, position]) % VOCABULARY, position, sequence, True)


def alone(engine: Engine, sequence: int, first: int, count: int, kv_type: str = "f16") -> Logits:
    """Logits of plain llama.cpp after each of the tokens, one at a time, (count, vocabulary)."""
    context = LlamaContext(engine.model, ContextShape(CTX, BATCH, THREADS, 1, kv_type))
    try:
        prefilled(context, TOKENS[sequence, :first].tolist())
        rows = []
        for position in range(first, first + count):
            context.compute([row_of(sequence, position)._replace(sequence=0)])
            rows.append(context.logits())
        return np.stack(rows)
    finally:
        context.close()


def together(context: LlamaContext, rows: Sequence[Row]) -> list[Logits]:
    context.compute(rows)
    return [context.logits(i) for i in range(len(rows))]


def assert_rows_equal(path: Path, first: int, count: int, kv_type: str = "f16") -> None:
    """One text, in passes of 2 to 7 rows after `first` tokens."""
    with opened(path, kv_type=kv_type) as engine:
        prefilled(engine.context, TOKENS[0, :first].tolist())
        rows: list[Logits] = []
        for size in cycle(range(2, 8)):
            positions = range(first + len(rows), min(first + len(rows) + size, first + count))
            rows += together(engine.context, [row_of(0, position) for position in positions])
            if len(rows) == count:
                break
        np.testing.assert_array_equal(rows, alone(engine, 0, first, count, kv_type))


@pytest.fixture
def no_flash_attention(monkeypatch: pytest.MonkeyPatch) -> None:
    given = llama_module.context_params

    def without(shape: ContextShape, placement: TrunkPlacement) -> Any:
        params = given(shape, placement)
        params.flash_attn_type = 0
        return params

    monkeypatch.setattr(llama_module, "context_params", without)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_architecture(architecture: str, tiny_model: Any) -> None:
    assert_rows_equal(tiny_model(architecture), PREFILL, NUM_ROWS)


@pytest.mark.parametrize(
    ("architecture", "kv_type"), [("qwen3moe", "q8_0"), ("deepseek2", "q8_0"), ("gpt-oss", "q4_0")]
)
def test_quantised_keys_and_values(architecture: str, kv_type: str, tiny_model: Any) -> None:
    """llama.cpp splits no row's cells then, and rotates each row by itself."""
    assert_rows_equal(tiny_model(architecture), PREFILL, NUM_ROWS, kv_type)


@pytest.mark.usefixtures("no_flash_attention")
@pytest.mark.parametrize("architecture", ["qwen3moe", "deepseek2", "gpt-oss", "gemma4"])
def test_without_flash_attention(architecture: str, tiny_model: Any) -> None:
    assert_rows_equal(tiny_model(architecture), PREFILL, NUM_ROWS)


def test_three_hundred_positions(tiny_model: Any) -> None:
    assert_rows_equal(tiny_model("qwen3moe", **Q4_K), 256, 320)


def test_three_hundred_positions_of_the_built_in_model() -> None:
    assert_rows_equal(edge.builtin_model(), 256, 320)


@pytest.mark.parametrize(
    "block_type", ["F32", "BF16", "Q8_0", "Q4_0", "Q5_0", "IQ4_NL", "Q4_K", "Q5_K", "Q6_K"]
)
def test_every_kind_of_block(block_type: str, tiny_model: Any) -> None:
    """The output's weight is large enough for a product of our own."""
    path = tiny_model(
        "qwen3moe",
        shape=TinyShape(num_hidden_layers=2, vocab_size=8192),
        expert_type=block_type,
        layout=TinyLayout(trunk_type=block_type),
    )
    assert_rows_equal(path, 0, 27)


@pytest.mark.parametrize("architecture", ["qwen3moe", "gpt-oss", "qwen35moe", "lfm2moe"])
def test_rows_of_different_sequences(architecture: str, tiny_model: Any) -> None:
    """Three texts of different lengths, of which one crosses 512 tokens."""
    lengths = [500, 256, 0]
    with opened(tiny_model(architecture), len(lengths)) as engine:
        results: list[list[Logits]] = [[], [], []]
        for sequence, length in enumerate(lengths):
            if length:
                prefilled(engine.context, TOKENS[sequence, :length].tolist(), sequence)
        for counts in [(1, 1, 1), (3, 0, 3), (1, 2, 3), (2, 2, 2), (0, 4, 1), (7, 0, 0)] * 2:
            rows = [
                row_of(sequence, lengths[sequence] + len(results[sequence]) + i)
                for sequence, count in enumerate(counts)
                for i in range(count)
            ]
            for row, logits in zip(rows, together(engine.context, rows), strict=True):
                results[row.sequence].append(logits)
        for sequence, length in enumerate(lengths):
            expected = alone(engine, sequence, length, len(results[sequence]))
            np.testing.assert_array_equal(results[sequence], expected)


@pytest.mark.parametrize("share", [pytest.param(0.0, id="floor"), 0.25, 1.0])
@pytest.mark.parametrize(
    "architecture",
    ["gpt-oss", "deepseek2", "gemma4", "smallthinker", "llama4", "qwen35moe", "lfm2moe"],
)
def test_streamed_experts(
    architecture: str, share: float, tiny_model: Any, trunk_dir: Path
) -> None:
    assert_rows_equal_streamed(tiny_model(architecture), share, trunk_dir)


@pytest.mark.parametrize("share", [pytest.param(0.0, id="floor"), 0.25, 1.0])
def test_streamed_experts_of_shared_blocks(share: float, tiny_model: Any, trunk_dir: Path) -> None:
    layout = TinyLayout(trunk_type="Q4_K", down_type="Q6_K")
    path = tiny_model("qwen3moe", expert_type="Q4_K", layout=layout)
    assert_rows_equal_streamed(path, share, trunk_dir)


def assert_rows_equal_streamed(path: Path, share: float, trunk_dir: Path) -> None:
    """Equal tokens choose equal experts, so that rows share them."""
    planned = streamed(edge.plan(path, ram="2GiB", ctx=CTX, threads=THREADS), share)
    tokens = [5, 5, 5, 5, 5, 5, 9, 5, 5, 9, 9, 5, 7, 7, 7, 7, 8, 7, 7, 7]
    options = edge.LoadOptions(cache_dir=trunk_dir, warm_start=False)
    with edge.load(planned, options=options) as model:
        single = model.logits(tokens, prefill=1)[1:]
        model.logits(tokens[:1], prefill=1)
        groups = [(1, 8), (8, 13), (13, 17), (17, 20)]
        grouped = np.concatenate([model.verify(tokens[a:b]) for a, b in groups])
    np.testing.assert_array_equal(grouped, single)
