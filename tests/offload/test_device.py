"""llama.cpp hands each layer's experts to the device in one call, and finds its graph as it was."""

import signal
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from haversack import edge
from haversack.devices import _native as devices
from haversack.devices import guard
from haversack.devices.errors import BindingError
from haversack.devices.ggml import GraphNode
from haversack.devices.llama import ContextShape, LlamaContext
from haversack.devices.llama_model import LlamaModel
from haversack.devices.logs import captured_logs
from haversack.edge.plain_llama import PlainLlama
from haversack.edge.planner import streamed
from haversack.offload.engine import open_resident
from haversack.offload.expert_buffer import ExpertBuffer
from haversack.tools.models.architectures import ARCHITECTURES, TinyShape

TOKENS = [1 + 7 * i % 200 for i in range(60)]
TENSOR_BYTES = devices.size_of(devices.Tensor)


# ---------------------------------------------------------------------- calls
@pytest.mark.parametrize("share", [0.0, 1.0])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_pass_takes_one_call_for_each_layer_with_experts(
    architecture: str, share: float, tiny_model: Any, open_model: Any
) -> None:
    model = open_model(tiny_model(architecture), share)
    num_layers = len(model.geometry.layers)
    for num_rows in (1, 2, 7, 8, 50):
        before = model.experts.num_calls
        model.engine.context.decode(TOKENS[:num_rows])
        assert model.experts.num_calls - before == num_layers, f"{num_rows} rows"


# -------------------------------------------------------------- the graph
def _bytes_of(tensor: int) -> bytes:
    return bytes(devices.memory[tensor : tensor + TENSOR_BYTES])


class Snapshots:
    """The bytes of all tensors of a graph, taken when llama.cpp is about to compute them."""

    def __init__(self) -> None:
        self._seen: dict[int, bytes] = {}

    def on_node(self, address: int, ask: bool, _: object) -> bool:
        """llama.cpp is never made to stop, so each backend gets its nodes as without a callback."""
        assert ask
        waiting = [address]
        while waiting:
            tensor = waiting.pop()
            if tensor not in self._seen:
                self._seen[tensor] = _bytes_of(tensor)
                waiting += filter(None, devices.Tensor.from_address(tensor).src)
        return False

    def assert_unchanged(self) -> None:
        assert len(self._seen) > 100
        for address, before in self._seen.items():
            assert _bytes_of(address) == before, GraphNode(address).name
        self._seen.clear()


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_no_tensor_of_the_graph_is_another_after_a_pass(
    architecture: str, tiny_model: Any, open_model: Any
) -> None:
    model, snapshots = open_model(tiny_model(architecture)), Snapshots()
    model.engine._renew_context(snapshots.on_node)
    for num_rows in (1, 1, 5, 40):
        model.engine.context.decode(TOKENS[:num_rows])
        snapshots.assert_unchanged()
    assert model.experts.misses > 0


_IN_A_LOCKED_GRAPH = """
import ctypes, sys
from pathlib import Path
from haversack.devices.llama import ContextShape, LlamaContext
from haversack.offload.engine import open_streamed, LoadHooks
from haversack.offload.pool import plan_pools
from haversack.quant.gguf import read_geometry
from haversack.quant.trunk import ensure_trunk

PAGE, READ, WRITE, TENSOR_BYTES = 4096, 1, 2, 336
mprotect = ctypes.CDLL(None).mprotect
mprotect.argtypes = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int


class Lock:
    nodes, locked, writes = [], None, False

    def on_node(self, address, ask, _):
        self.nodes.append(address)
        first = -(-min(self.nodes) // PAGE) * PAGE
        end = (max(self.nodes) + TENSOR_BYTES) // PAGE * PAGE
        self.open()
        if end > first:
            self.locked = first, end - first
            assert mprotect(*self.locked, READ) == 0
            if self.writes:
                ctypes.memset(first, 0, 1)
        return False

    def open(self):
        if self.locked:
            mprotect(*self.locked, READ | WRITE)


lock = Lock()
geometry = read_geometry(Path(sys.argv[1]))
plans = plan_pools(geometry.layers, geometry.num_experts_per_tok, 0)
trunk = ensure_trunk(geometry, Path(sys.argv[2]))
shape = ContextShape(ctx_tokens=128, batch_tokens=64, threads=1)
engine = open_streamed(geometry, trunk, shape, lambda: plans, LoadHooks(warm_start=False))
PassEnd = ctypes.CFUNCTYPE(ctypes.c_int32, ctypes.c_void_p, ctypes.c_bool)
end_pass, experts = engine._device.pass_end
unlock = PassEnd(lambda experts, computed: (lock.open(), PassEnd(end_pass)(experts, computed))[1])
engine._device.pass_end = ctypes.cast(unlock, ctypes.c_void_p).value, experts
engine._renew_context(lock.on_node)
lock.writes = sys.argv[3] == "write"
for num_rows in (1, 1, 5, 40):
    lock.nodes, lock.locked = [], None
    engine.context.decode(list(range(1, num_rows + 1)))
    assert lock.locked[1] > 4 * PAGE
print(engine.experts.misses > 0)
engine.close()
"""


@pytest.mark.skipif(sys.platform != "linux", reason="pages are locked by mprotect")
@pytest.mark.parametrize("architecture", ["qwen3moe", "gpt-oss"])
def test_nothing_writes_to_the_graph_while_it_is_computed(
    architecture: str, tiny_model: Any, trunk_dir: Path
) -> None:
    """The pages that hold the graph's tensors can only be read meanwhile: a write, also one that is
    undone before the pass ends, ends the process."""
    command = [sys.executable, "-c", _IN_A_LOCKED_GRAPH, str(tiny_model(architecture))]
    done = subprocess.run([*command, str(trunk_dir), "no"], capture_output=True, text=True)
    assert (done.returncode, done.stdout.strip()) == (0, "True"), done.stderr
    writing = subprocess.run([*command, str(trunk_dir), "write"], capture_output=True)
    assert writing.returncode == -signal.SIGSEGV


# ----------------------------------------------------------- eval callbacks
def test_a_context_has_an_eval_callback_only_while_its_routing_is_watched(
    tiny_model: Any, trunk_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    callbacks = list[bool]()
    init_context = guard.init_context

    def noted(model: Any, params: Any, owner: int | None = None) -> Any:
        callbacks.append(bool(params.cb_eval))
        return init_context(model, params, owner)

    planned = streamed(edge.plan(tiny_model("qwen3moe"), ram="1GiB", ctx=128, threads=1), 0.3)
    monkeypatch.setattr(guard, "init_context", noted)
    with edge.load(planned, options=edge.LoadOptions(cache_dir=trunk_dir)) as model:
        list(model.generate(TOKENS[:5], max_tokens=3, temperature=0))
        assert callbacks == [False]
        model.watch_routing(lambda *_: None)
        model.logits(TOKENS, 50)
        model.watch_routing(None)
        model.logits(TOKENS, 50)
    assert callbacks == [False, True, False]


# ------------------------------------------------------------ other contexts
def num_backends(log: Any) -> list[int]:
    """How many backends each context has been given, by llama.cpp's own log."""
    lines = [line for line in log.lines if "backend_ptrs.size()" in line]
    return [int(line.rpartition("=")[2]) for line in lines]


def test_only_our_contexts_get_the_device(tiny_model: Any, open_model: Any) -> None:
    path = tiny_model("qwen3moe")
    shape = ContextShape(ctx_tokens=64, batch_tokens=32, threads=1)
    with captured_logs() as log, closing(LlamaModel(path)) as model:
        for _ in range(2):
            LlamaContext(model, shape).close()
            open_model(path)
        PlainLlama(path, 64, 1).close()
        open_resident(path, shape).close()
    plain, ours = num_backends(log)[:2]
    assert ours == plain + 1
    assert num_backends(log) == [plain, ours, plain, ours, plain, ours]


def test_plain_llama_beside_a_streamed_model_computes_its_own(
    tiny_model: Any, open_model: Any
) -> None:
    path = tiny_model("qwen3moe", expert_type="Q4_K")
    with PlainLlama(path, 128, 1) as before:
        expected = before.logits(TOKENS, 5)
    model = open_model(path)
    with PlainLlama(path, 128, 1) as plain:
        for prefill in (5, 30):
            model.logits(TOKENS[:40], prefill)
            num_calls = model.experts.num_calls
            np.testing.assert_array_equal(plain.logits(TOKENS, 5), expected)
            assert model.experts.num_calls == num_calls


def test_models_of_one_process_take_turns(tiny_model: Any, open_model: Any) -> None:
    paths = [tiny_model("qwen3moe"), tiny_model("gpt-oss"), tiny_model("qwen3moe", seed=1)]
    models, expected = [open_model(path, 0.2) for path in paths], []
    for path in paths:
        with PlainLlama(path, 128, 1) as plain:
            expected.append(plain.logits(TOKENS, 40))
    for step, batch in enumerate([TOKENS[:40], *([token] for token in TOKENS[40:])]):
        for model, logits in zip(models, expected, strict=True):
            model.engine.context.decode(batch)
            np.testing.assert_array_equal(model.engine.context.logits(), logits[step])
            model.experts.check_integrity()


# ----------------------------------------------------------------- refusals
def test_a_model_without_one_of_its_weights_is_refused(
    tiny_model: Any, open_model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = ExpertBuffer.weights

    def without_one(buffer: ExpertBuffer) -> dict[str, int]:
        found = weights(buffer)
        del found["blk.1.ffn_up_exps.weight"]
        return found

    monkeypatch.setattr(ExpertBuffer, "weights", without_one)
    with pytest.raises(BindingError, match=r"did not load blk\.1\.ffn_up_exps\.weight"):
        open_model(tiny_model("qwen3moe"))


@pytest.mark.parametrize("num_rows", [1, 5, 40])
def test_a_product_that_the_device_does_not_know_is_refused(
    num_rows: int, tiny_model: Any, open_model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """llama.cpp would compute it itself, with a weight that has no memory."""
    weights = ExpertBuffer.weights

    def mistaken(buffer: ExpertBuffer) -> dict[str, int]:
        found = weights(buffer)
        other = GraphNode(found["blk.0.ffn_up_exps.weight"])
        return {**found, "blk.1.ffn_up_exps.weight": other.address}

    monkeypatch.setattr(ExpertBuffer, "weights", mistaken)
    model = open_model(tiny_model("qwen3moe", shape=TinyShape(num_hidden_layers=2)))
    with pytest.raises(BindingError, match="cannot be streamed, raise --ram"):
        model.engine.context.decode(TOKENS[:num_rows])
    model.experts.check_integrity()
