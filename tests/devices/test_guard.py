"""If llama.cpp gives up, the caller gets an exception, and other models still work."""

import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from haversack import edge
from haversack.devices.batch import Batch
from haversack.devices.errors import AbortedError, ClosedError, ModelFileError
from haversack.devices.llama import ContextShape, LlamaContext
from haversack.devices.llama_model import LlamaModel
from haversack.devices.team import Team

TinyModel = Callable[..., Path]
SHAPE = ContextShape(ctx_tokens=64, batch_tokens=64, threads=2)


@pytest.fixture
def spoilt(tiny_model: TinyModel, tmp_path: Path) -> Callable[[str, int], Path]:
    """Return a function that returns a model with one invalid metadata value."""

    def give(key: str, value: int) -> Path:
        name = f"qwen3moe.{key}".encode()
        content = bytearray(tiny_model().read_bytes())
        place = content.index(name) + len(name) + 4  # after the value's type
        content[place : place + 4] = value.to_bytes(4, "little")
        (tmp_path / "spoilt.gguf").write_bytes(content)
        return tmp_path / "spoilt.gguf"

    return give


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("block_count", 7777, r"llama-model\.cpp:\d+: GGML_ASSERT\(hparams\.n_layer"),
        ("expert_used_count", 99, r"GGML_ASSERT\(n_expert_used_max <= hparams\.n_expert"),
    ],
)
def test_an_assertion_at_load_is_an_error(
    spoilt: Callable[[str, int], Path], key: str, value: int, words: str
) -> None:
    with pytest.raises(ModelFileError, match=words):
        LlamaModel(spoilt(key, value))


@pytest.mark.parametrize("value", [7, 100_000])
def test_an_assertion_when_a_context_is_made_is_an_error(
    spoilt: Callable[[str, int], Path], tiny_model: TinyModel, trunk_dir: Path, value: int
) -> None:
    path = spoilt("rope.dimension_count", value)
    with pytest.raises(ModelFileError, match=r"GGML_ASSERT\(n_embd_head == n_rot\) failed"):
        edge.load(path, ram="1GiB", ctx=64)
    model = LlamaModel(path)
    with pytest.raises(ModelFileError, match="GGML_ASSERT"):
        LlamaContext(model, SHAPE)
    model.close()
    options = edge.LoadOptions(cache_dir=trunk_dir)
    with edge.load(tiny_model(), ram="1GiB", ctx=64, options=options) as other:
        assert other.generate([1, 2, 3], 3, temperature=0).text


def test_an_assertion_in_a_call_breaks_the_context_and_nothing_else(tiny_model: TinyModel) -> None:
    model = LlamaModel(tiny_model())
    context = LlamaContext(model, SHAPE)
    context._batch = Batch(1000)  # llama.cpp asserts what this would have refused
    context._team = Team(SHAPE.threads, context.address, context._batch.struct, None)
    with pytest.raises(
        AbortedError, match=r"gave up: llama-context\.cpp:\d+: GGML_ASSERT\(.*n_batch"
    ):
        context.decode([1] * 65)
    for call in (lambda: context.decode([1]), context.logits, lambda: context.forget(0)):
        with pytest.raises(ClosedError, match=r"GGML_ASSERT.*close the model and load it again"):
            call()
    context.close()
    again = LlamaContext(model, SHAPE)
    again.decode([1, 2, 3])
    assert again.num_tokens() == 3
    again.close()
    model.close()


# What no guard stands around: ggml refuses the type 9999, and nothing can be thrown.
PROGRAM = """
import sys
from haversack.devices import _native as native, guard
from haversack.devices.llama import ContextShape, LlamaContext
from haversack.devices.llama_model import LlamaModel

def give_up():
    context = native.ggml_init(native.GgmlInitParams(100_000, None, True))
    native.ggml_new_tensor_3d(context, 9999, 1, 1, 1)

def on_node(node, ask, _):
    give_up()

def inside_of_a_call():  # Python lies between
    from pathlib import Path
    model = LlamaModel(Path(sys.argv[2]))
    LlamaContext(model, ContextShape(64, 64, 1), on_node=on_node).decode([1, 2])

if "program" in sys.argv:
    guard.end_process_on_abort()
{"outside": give_up, "inside": inside_of_a_call}[sys.argv[1]]()
"""


@pytest.mark.parametrize("where", ["outside", "inside"])
@pytest.mark.parametrize("kind", ["library", "program"])
def test_where_nothing_can_be_raised_one_line_says_so(
    tiny_model: TinyModel, where: str, kind: str
) -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, where, str(tiny_model()), kind],
        capture_output=True,
        text=True,
        timeout=300,
    )
    told = [line for line in done.stderr.splitlines() if line.startswith("haversack: llama.cpp")]
    assert len(told) == 1 and "ggml.c:" in told[0] and "GGML_ASSERT(type" in told[0]
    assert done.returncode == (2 if kind == "program" else -signal.SIGABRT)
