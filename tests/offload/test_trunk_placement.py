"""Layers of llama.cpp's on a device: the bits of the host's, and the experts still ours."""

from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from haversack.devices.backends import Device
from haversack.devices.errors import HaversackError
from haversack.devices.llama import MOST_ROWS, ContextShape, LlamaContext, Row
from haversack.devices.llama_model import LlamaModel
from haversack.devices.needs import memory_needs
from haversack.devices.trunk_placement import LayersOn, TrunkPlacement
from haversack.offload import _native as native
from haversack.offload.engine import open_resident
from haversack.tools.models.architectures import ARCHITECTURES, TinyShape

SHAPE = TinyShape(num_experts=8, num_experts_per_tok=2)
PREFILL, DECODED = 20, 16
TOKENS = np.random.default_rng(0).integers(0, SHAPE.vocab_size, PREFILL + DECODED).tolist()
CONTEXT = ContextShape(ctx_tokens=256, batch_tokens=128, threads=1)
ALL = 99  # layers: more than there are

Logits = npt.NDArray[np.float32]


def placed(device: Device, num_layers: int = ALL, **how: bool) -> TrunkPlacement:
    return TrunkPlacement((LayersOn(device, num_layers),), **how)


@pytest.fixture(scope="module")
def plain(tiny_model: Callable[..., Path]) -> Iterator[Callable[[str], Logits]]:
    """A function that gives the logits of a model of an architecture in the host's memory."""
    known: dict[str, Logits] = {}

    def give(architecture: str) -> Logits:
        if architecture not in known:
            engine = open_resident(tiny_model(architecture, shape=SHAPE), CONTEXT)
            with closing(engine):
                known[architecture] = decoded(engine.context)
        return known[architecture]

    yield give


def decoded(context: LlamaContext) -> Logits:
    """Return the logits after a batch, and after each further token."""
    context.decode(TOKENS[:PREFILL])
    rows = [context.logits()]
    for token in TOKENS[PREFILL:]:
        context.decode([token])
        rows.append(context.logits())
    return np.stack(rows)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_architecture_has_the_hosts_bits(
    architecture: str,
    plain: Callable[[str], Logits],
    rpc_device: Device,
    open_model: Callable[..., Any],
    tiny_model: Callable[..., Path],
) -> None:
    model = open_model(tiny_model(architecture, shape=SHAPE), 0.25, placement=placed(rpc_device))
    assert (model.logits(TOKENS, PREFILL) == plain(architecture)).all()
    num_passes, num_layers = DECODED + 1, len(model.geometry.layers)
    state = native.engine_state(model.experts.address).contents
    assert state.num_calls == num_passes * num_layers


@pytest.mark.parametrize("num_layers", [1, 2])
def test_some_layers(
    num_layers: int,
    plain: Callable[[str], Logits],
    rpc_device: Device,
    open_model: Callable[..., Any],
    tiny_model: Callable[..., Path],
) -> None:
    path = tiny_model("qwen3moe", shape=SHAPE)
    model = open_model(path, 0.25, placement=placed(rpc_device, num_layers=num_layers))
    assert (model.logits(TOKENS, PREFILL) == plain("qwen3moe")).all()


@pytest.mark.parametrize("architecture", ["qwen3moe", "gpt-oss", "lfm2moe"])
def test_rows_computed_alone_have_the_bits_of_single_tokens(
    architecture: str,
    plain: Callable[[str], Logits],
    rpc_device: Device,
    tiny_model: Callable[..., Path],
) -> None:
    path = tiny_model(architecture, shape=SHAPE)
    with closing(open_resident(path, CONTEXT, placement=placed(rpc_device))) as engine:
        context = engine.context
        context.decode(TOKENS[:PREFILL])
        for first in range(0, DECODED, MOST_ROWS):
            tokens = TOKENS[PREFILL + first :][:MOST_ROWS]
            start = PREFILL + first
            context.compute([Row(token, start + at, 0, True) for at, token in enumerate(tokens)])
            for at in range(len(tokens)):
                assert (context.logits(at) == plain(architecture)[first + at + 1]).all()
            assert (context.logits() == context.logits(len(tokens) - 1)).all()


def test_a_sequence_whose_cells_lie_there_is_copied(
    rpc_device: Device, tiny_model: Callable[..., Path]
) -> None:
    path, shape = tiny_model("qwen3moe", shape=SHAPE), replace(CONTEXT, sequences=2)
    with closing(open_resident(path, shape, placement=placed(rpc_device))) as engine:
        context, logits = engine.context, list[Logits]()
        context.decode(TOKENS[:PREFILL], 0)
        context.copy(0, 1)
        for sequence in (1, 0):
            context.decode(TOKENS[PREFILL:][:1], sequence)
            logits.append(context.logits())
        assert np.array_equal(logits[0], logits[1])


def test_rows_whose_pass_fails_are_no_part_of_their_sequence(
    rpc_device: Device, tiny_model: Callable[..., Path]
) -> None:
    path = tiny_model("qwen3moe", shape=SHAPE)
    with closing(open_resident(path, CONTEXT, placement=placed(rpc_device))) as engine:
        context = engine.context
        context.decode(TOKENS[:PREFILL])
        with pytest.raises(HaversackError, match="positions remain consecutive"):
            context.compute([Row(1, PREFILL, 0, True), Row(2, PREFILL + 2, 0, True)])
        assert context.num_tokens() == PREFILL


# --------------------------------------------------------------------- memory
def needs_of(path: Path, placement: TrunkPlacement | None) -> Any:
    with closing(LlamaModel(path, dry=True, placement=placement)) as model:
        return memory_needs(model, CONTEXT)


def test_what_a_device_needs_is_planned(
    rpc_device: Device, tiny_model: Callable[..., Path]
) -> None:
    path = tiny_model("qwen3moe", shape=SHAPE)
    host, half, whole = (
        needs_of(path, placement) for placement in (None, placed(rpc_device, 2), placed(rpc_device))
    )
    assert host.devices == ()
    (some,), (every,) = half.devices, whole.devices
    assert some.name == every.name == rpc_device.name
    assert 0 < some.weight_bytes < every.weight_bytes < path.stat().st_size
    assert some.kv_bytes + half.kv_bytes == every.kv_bytes + whole.kv_bytes == host.kv_bytes
    assert 0 < some.kv_bytes < every.kv_bytes
    assert every.compute_bytes > 0


def test_a_model_takes_no_device_unless_it_is_placed(
    rpc_device: Device, tiny_model: Callable[..., Path]
) -> None:
    model = LlamaModel(tiny_model("qwen3moe", shape=SHAPE))
    with closing(model):
        tensors = model.tensors()
        assert tensors is None or all(tensor.is_on_host for tensor in tensors)
