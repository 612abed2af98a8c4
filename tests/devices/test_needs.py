"""The planned needs of a context: exact where they can be counted, and never too low."""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from haversack.devices import needs
from haversack.devices._native import llama
from haversack.devices.errors import BindingError, ModelFileError, PromptError
from haversack.devices.llama import ContextShape, LlamaContext
from haversack.devices.llama_model import LlamaModel
from haversack.devices.logs import LogCapture
from haversack.devices.needs import THREAD_SCRATCH_BYTES, cell_bytes, memory_needs
from haversack.tools.models.synth import TinyShape

SMALL = TinyShape(num_hidden_layers=2, num_experts=4, vocab_size=64)

ROOMY = ContextShape(ctx_tokens=4096, batch_tokens=256, threads=1)
# Prints the anonymous memory that a full context takes, in a process where nothing else does.
MEASURE = f"""
import sys
from pathlib import Path
from haversack.devices.llama import ContextShape, LlamaContext
from haversack.devices.llama_model import LlamaModel
from haversack.devices.memory import anonymous_bytes

model = LlamaModel(Path(sys.argv[1]))
before = anonymous_bytes()
context = LlamaContext(model, {ROOMY})
for token in range({ROOMY.ctx_tokens // ROOMY.batch_tokens - 1}):
    context.decode([token] * {ROOMY.batch_tokens})
context.decode([1])
print(anonymous_bytes() - before)
"""


def needs_of(path: Path, shape: ContextShape) -> tuple[int, int]:
    dry = LlamaModel(path, dry=True)
    needs = memory_needs(dry, shape)
    dry.close()
    return needs.kv_bytes, needs.compute_bytes


def test_bytes_of_the_cache_by_hand(tiny_model: Callable[..., Path]) -> None:
    layers, key_value_heads, head_dim, f16_bytes = 2, 2, 64, 2
    path = tiny_model("qwen3moe", shape=SMALL)
    for ctx_tokens in (256, 8192):
        by_hand = 2 * layers * key_value_heads * head_dim * f16_bytes * ctx_tokens
        by_hand += cell_bytes(ctx_tokens)
        kv_bytes, _ = needs_of(path, ContextShape(ctx_tokens, 64, 1))
        assert kv_bytes == by_hand


@pytest.mark.parametrize(("kv_type", "block_bytes"), [("q8_0", 34), ("q4_0", 18)])
def test_a_quantised_cache_takes_its_blocks(
    kv_type: str, block_bytes: int, tiny_model: Callable[..., Path]
) -> None:
    """And the matrices of 64 to 512 rows with which llama.cpp rotates keys and values."""
    layers, key_value_heads, head_dim = 2, 2, 64
    rotations = sum(4 * side * side for side in (64, 128, 256, 512))
    kv_bytes, _ = needs_of(
        tiny_model("qwen3moe", shape=SMALL), ContextShape(8192, 64, 1, 1, kv_type)
    )
    by_hand = 2 * layers * key_value_heads * head_dim // 32 * block_bytes * 8192
    assert kv_bytes == by_hand + cell_bytes(8192) + rotations


def test_a_type_that_no_head_is_made_of_is_refused(known_answer_model: Path) -> None:
    needs_of(known_answer_model, ContextShape(256, 64, 1))
    with pytest.raises(
        ModelFileError, match=r"block size 32 does not divide .*; give --kv-type f16"
    ):
        needs_of(known_answer_model, ContextShape(256, 64, 1, 1, "q8_0"))


def test_an_unknown_type_is_refused() -> None:
    with pytest.raises(PromptError, match="kv_type is 'q2_k': give one of f16, q8_0, q4_0"):
        ContextShape(256, 64, 1, 1, "q2_k")


# Prints what is needed after the process was given the locale of its first argument.
NEEDS_IN_LOCALE = f"""
import locale
import sys
from pathlib import Path
from haversack.devices.llama import ContextShape
from haversack.devices.llama_model import LlamaModel
from haversack.devices.needs import memory_needs

if sys.argv[1]:
    locale.setlocale(locale.LC_ALL, sys.argv[1])
    assert locale.localeconv()["decimal_point"] == ","
print(memory_needs(LlamaModel(Path(sys.argv[2]), dry=True), {ROOMY}))
"""


@pytest.mark.skipif(shutil.which("localedef") is None, reason="localedef makes the locale")
def test_a_locale_with_decimal_commas_changes_nothing(
    tiny_model: Callable[..., Path], tmp_path: Path
) -> None:
    made = subprocess.run(
        ["localedef", "-i", "de_DE", "-f", "UTF-8", str(tmp_path / "de_DE.UTF-8")],
        capture_output=True,
        text=True,
    )
    if not (tmp_path / "de_DE.UTF-8").is_dir():
        pytest.skip(f"this system has no sources of locales: {made.stderr}")
    path = tiny_model("qwen3moe", shape=SMALL)
    environment = {**os.environ, "LOCPATH": str(tmp_path)}

    def needed(name: str) -> str:
        command = [sys.executable, "-c", NEEDS_IN_LOCALE, name, str(path)]
        done = subprocess.run(command, capture_output=True, text=True, env=environment)
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert needed("de_DE.UTF-8") == needed("")


def test_what_is_needed_is_known_without_any_log(
    tiny_model: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another library may have set llama.cpp's log callback."""
    path = tiny_model("gemma4", shape=SMALL)
    expected = needs_of(path, ROOMY)

    @contextmanager
    def silent_logs() -> Iterator[LogCapture]:
        yield LogCapture()

    monkeypatch.setattr(needs, "captured_logs", silent_logs)
    assert needs_of(path, ROOMY) == expected


def test_a_build_without_the_functions_is_named(
    tiny_model: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(llama, "MEMORY_BREAKDOWN", "llama_of_another_compiler")
    with pytest.raises(BindingError, match=r"exports no llama_of_another_compiler here: models"):
        needs_of(tiny_model("qwen3moe", shape=SMALL), ROOMY)


def test_larger_batches_need_more(tiny_model: Callable[..., Path]) -> None:
    path = tiny_model("qwen3moe", shape=SMALL)
    small, large = (needs_of(path, ContextShape(8192, batch, 1)) for batch in (16, 512))
    assert small[0] == large[0]
    assert small[1] < large[1] / 4


def test_there_is_room_for_the_logits_of_one_token_only(tiny_model: Callable[..., Path]) -> None:
    sizes = [TinyShape(2, num_experts=4, vocab_size=vocab_size) for vocab_size in (64, 8192)]
    shape = ContextShape(ctx_tokens=1024, batch_tokens=1024, threads=1)
    few, many = (needs_of(tiny_model("qwen3moe", shape=size), shape)[1] for size in sizes)
    assert many - few < 8192 * 4 * 8  # and not times 1024 tokens


@pytest.mark.parametrize(
    "architecture", ["qwen3moe", "deepseek2", "gpt-oss", "lfm2moe", "qwen3next", "gemma4"]
)
def test_a_context_takes_no_more_than_it_was_said_to_need(
    architecture: str, tiny_model: Callable[..., Path]
) -> None:
    path = tiny_model(architecture, shape=SMALL)
    needed_bytes = sum(needs_of(path, ROOMY))
    command = [sys.executable, "-c", MEASURE, str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    fixed_bytes = needed_bytes - ROOMY.threads * THREAD_SCRATCH_BYTES  # which few products take
    assert 0.6 * fixed_bytes < int(done.stdout) <= needed_bytes


def test_a_context_that_cannot_be(tiny_model: Callable[..., Path]) -> None:
    dry = LlamaModel(tiny_model("qwen3moe", shape=SMALL), dry=True)
    impossible = ContextShape(ctx_tokens=0, batch_tokens=0, threads=1)
    with pytest.raises(ModelFileError, match=re.escape("cannot plan a context of 0 tokens")):
        memory_needs(dry, impossible)
    with pytest.raises(ModelFileError, match=r"cannot make a context of 0 tokens .*lower --ctx"):
        LlamaContext(dry, impossible)
    dry.close()
