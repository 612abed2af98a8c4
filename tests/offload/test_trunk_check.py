"""Weights in memory are compared with what was written, whatever way they were damaged."""

import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from haversack.devices._native import array_at
from haversack.devices.errors import DamagedTrunkError
from haversack.devices.ggml import GgufHeader
from haversack.devices.llama_model import LlamaModel
from haversack.offload.expert_buffer import ExpertBuffer
from haversack.offload.trunk_check import TrunkCheck
from haversack.quant.gguf import EXPERT_PATTERN, read_geometry
from haversack.quant.trunk import ensure_trunk, hole_names
from haversack.tools.models.architectures import ARCHITECTURES, TinyShape
from haversack.tools.models.synth import TinyLayout

SHAPE = TinyShape(num_hidden_layers=2, num_experts=4, vocab_size=64)
in_memory = pytest.mark.skipif(
    sys.platform == "win32", reason="llama.cpp does not tell there where weights lie"
)


class Loaded:
    """A trunk, its check, and the model loaded from it."""

    def __init__(self, path: Path, folder: Path) -> None:
        geometry = read_geometry(path)
        self.trunk = ensure_trunk(geometry, folder)
        self.check = TrunkCheck(self.trunk, hole_names(geometry))
        self.experts = ExpertBuffer(EXPERT_PATTERN)
        self.model = LlamaModel(self.trunk, experts=self.experts)

    def flip_a_bit(self, name: str) -> None:
        """Change a weight in memory, as a failing read would."""
        node = next(node for node in self.model.tensors() or () if node.name == name)
        array_at(node.data_address, (1,), "u1")[0] ^= 1

    def close(self) -> None:
        self.check.close()
        self.model.close()
        self.experts.close()


@pytest.fixture
def loaded(tiny_model: Any, tmp_path: Path) -> Iterator[Loaded]:
    made = Loaded(tiny_model("qwen3moe", shape=SHAPE), tmp_path)
    yield made
    made.close()


@in_memory
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_weight_is_found_as_it_was_written(
    architecture: str, tiny_model: Any, tmp_path: Path
) -> None:
    layout = TinyLayout(all_optional=True)
    loaded = Loaded(tiny_model(architecture, shape=SHAPE, layout=layout), tmp_path)
    loaded.check.begin(loaded.model)
    loaded.check.finish()
    assert not loaded.check._in_another_form
    loaded.close()


def test_the_file_is_compared_where_llama_cpp_does_not_tell_where_weights_lie(
    loaded: Loaded, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loaded.model, "tensors", lambda: None)
    loaded.check.begin(loaded.model)
    loaded.check.finish()
    with GgufHeader(loaded.trunk) as header:
        place = next(t.offset for t in header.tensors if t.name == "output_norm.weight")
    with loaded.trunk.open("r+b") as file:
        file.seek(place)
        file.write(b"\0")
    loaded.check.begin(loaded.model)
    with pytest.raises(DamagedTrunkError, match=r"output_norm\.weight was changed"):
        loaded.check.finish()


@in_memory
@pytest.mark.parametrize("name", ["token_embd.weight", "blk.1.ffn_norm.weight"])
def test_a_flipped_bit_in_memory(loaded: Loaded, name: str) -> None:
    loaded.flip_a_bit(name)
    loaded.check.begin(loaded.model)
    with pytest.raises(DamagedTrunkError, match="what was read of it is not what it holds"):
        loaded.check.finish()


@in_memory
def test_a_flipped_bit_in_the_file_too(loaded: Loaded) -> None:
    with GgufHeader(loaded.trunk) as header:
        place = next(t.offset for t in header.tensors if t.name == "output_norm.weight")
    with loaded.trunk.open("r+b") as file:
        file.seek(place)
        file.write(b"\0")
    loaded.flip_a_bit("output_norm.weight")
    loaded.check.begin(loaded.model)
    with pytest.raises(DamagedTrunkError, match=r"output_norm\.weight was changed"):
        loaded.check.finish()


def test_no_thread_is_left(loaded: Loaded) -> None:
    loaded.check.begin(loaded.model)
    loaded.check.close()
    loaded.check.close()
    assert not any(thread.name == "trunk check" for thread in threading.enumerate())
