"""Models and contexts of llama.cpp: loading, decoding, stopping, forgetting, and their memory."""

import os
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from haversack.devices import _native as native
from haversack.devices._native import llama, own
from haversack.devices.errors import (
    CancelledError,
    ContextError,
    HaversackError,
    ModelFileError,
    PromptError,
)
from haversack.devices.ggml import GraphNode
from haversack.devices.interrupts import StopFlag
from haversack.devices.llama import (
    ContextShape,
    LlamaContext,
)
from haversack.devices.llama_model import LlamaModel
from haversack.devices.memory import anonymous_bytes
from haversack.tools.models.synth import TinyShape

SMALL = TinyShape(num_hidden_layers=2, num_experts=4, vocab_size=64)
SHAPE = ContextShape(ctx_tokens=256, batch_tokens=128, threads=1)
MIB = 1024 * 1024
Logits = npt.NDArray[np.float32]


@pytest.fixture
def model(tiny_model: Callable[..., Path]) -> Iterator[LlamaModel]:
    loaded = LlamaModel(tiny_model("qwen3moe", shape=SMALL))
    yield loaded
    loaded.close()


@pytest.fixture(scope="module")
def speaking(known_answer_model: Path) -> Iterator[LlamaModel]:
    """The known-answer model, which has a vocabulary."""
    loaded = LlamaModel(known_answer_model)
    yield loaded
    loaded.close()


def fresh_logits(model: LlamaModel, *batches: list[int]) -> Logits:
    """Return the logits of a new context after decoding `batches`."""
    context = LlamaContext(model, SHAPE)
    for tokens in batches:
        context.decode(tokens)
    logits = context.logits()
    context.close()
    return logits


# -------------------------------------------------------------------- loading
def test_a_loaded_model(model: LlamaModel) -> None:
    assert model.trained_ctx_tokens == 512
    assert model.chat_template is None
    assert model.vocabulary.num_tokens == 64
    assert not model.vocabulary.has_text
    model.close()
    model.close()  # may be called twice


def test_the_chat_template_is_the_files(speaking: LlamaModel) -> None:
    assert "message['content']" in str(speaking.chat_template)


def test_progress_goes_from_0_to_1(tiny_model: Callable[..., Path]) -> None:
    shares: list[float] = []
    LlamaModel(tiny_model("qwen3moe", shape=SMALL), progress=shares.append).close()
    assert shares == sorted(shares)
    assert shares[0] == 0 and shares[-1] == 1 and len(shares) > 2


@pytest.mark.parametrize("error", [KeyboardInterrupt, ZeroDivisionError])
def test_what_progress_raises_stops_loading(
    error: type[BaseException], tiny_model: Callable[..., Path]
) -> None:
    shares: list[float] = []

    def progress(share: float) -> None:
        shares.append(share)
        if share > 0.2:
            raise error

    with pytest.raises(error):
        LlamaModel(tiny_model("qwen3moe", shape=SMALL), progress=progress)
    assert shares[-1] < 0.9


@pytest.mark.parametrize("share", [0.5, 1.0])  # in the middle, and when all is loaded
def test_ctrl_c_stops_loading(share: float, tiny_model: Callable[..., Path]) -> None:
    before = signal.signal(signal.SIGINT, signal.default_int_handler)

    def progress(done: float) -> None:
        if done >= share:
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        LlamaModel(tiny_model("qwen3moe", shape=SMALL), progress=progress)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    signal.signal(signal.SIGINT, before)


def test_a_dry_model_has_no_weights(tiny_model: Callable[..., Path]) -> None:
    path = tiny_model("qwen3moe", shape=TinyShape(2, num_experts=64, vocab_size=64))
    assert path.stat().st_size > 48 * MIB
    before = anonymous_bytes()
    model = LlamaModel(path, dry=True)
    assert anonymous_bytes() - before < 8 * MIB
    assert model.trained_ctx_tokens == 512
    model.close()


def test_files_that_cannot_be_loaded(tmp_path: Path, tiny_model: Callable[..., Path]) -> None:
    missing = tmp_path / "missing.gguf"
    with pytest.raises(ModelFileError, match=rf"llama.cpp cannot load {missing}: .*No such file"):
        LlamaModel(missing)
    unknown = tmp_path / "unknown.gguf"
    data = tiny_model("qwen3moe", shape=SMALL).read_bytes()
    unknown.write_bytes(data.replace(b"qwen3moe", b"qwen3mow"))
    with pytest.raises(ModelFileError, match="unknown model architecture: 'qwen3mow'"):
        LlamaModel(unknown)
    incomplete = tmp_path / "incomplete.gguf"
    incomplete.write_bytes(data.replace(b"blk.1.attn_q.weight", b"blk.1.attn_?.weight"))
    with pytest.raises(ModelFileError, match=r"tensor 'blk.1.attn_q.weight' not found"):
        LlamaModel(incomplete)


def test_a_files_name_may_be_any_bytes(known_answer_model: Path, tmp_path: Path) -> None:
    path = tmp_path / os.fsdecode(b"caf\xe9.gguf")
    path.write_bytes(known_answer_model.read_bytes())
    LlamaModel(path).close()


# ----------------------------------------------------------------- vocabulary
def test_text_becomes_tokens_and_tokens_become_text(speaking: LlamaModel) -> None:
    vocabulary = speaking.vocabulary
    assert vocabulary.has_text
    text = "Once upon a time 🎒" + "a" * 300
    tokens = vocabulary.tokenize(text)
    assert tokens[0] == 1
    assert tokens[1:] == vocabulary.tokenize(text, add_special=False)
    assert b"".join(map(vocabulary.piece, tokens)) == b" " + text.encode()
    assert vocabulary.adds_space


def test_special_tokens(speaking: LlamaModel) -> None:
    vocabulary = speaking.vocabulary
    assert (vocabulary.bos, vocabulary.eos) == ("<s>", "</s>")
    assert vocabulary.piece(2) == b""
    assert vocabulary.piece(2, special=True) == b"</s>"
    assert vocabulary.tokenize("</s>", add_special=False)[-1] == 2
    assert vocabulary.ends(2) and not vocabulary.ends(1)


def test_a_text_that_begins_with_the_start_token_gets_no_second(speaking: LlamaModel) -> None:
    vocabulary = speaking.vocabulary
    assert vocabulary.tokenize("<s>Once") == vocabulary.tokenize("<s>Once", add_special=False)
    assert vocabulary.tokenize("<s>Once").count(1) == vocabulary.tokenize("Once").count(1) == 1
    assert vocabulary.tokenize("<s><s>Once").count(1) == 2  # what is written out stays
    assert vocabulary.tokenize("<s>") == vocabulary.tokenize("") == [1]
    assert vocabulary.tokenize("Once<s>")[0] == vocabulary.tokenize("</s>Once")[0] == 1


def test_no_end_token_stands_behind_a_text(known_answer_model: Path, tmp_path: Path) -> None:
    """Some files ask for an end token, after which a text would not go on."""
    content = bytearray(known_answer_model.read_bytes())
    key = b"tokenizer.ggml.add_eos_token"
    content[content.index(key) + len(key) + 4] = True  # after the value's type
    path = tmp_path / "adds-eos.gguf"
    path.write_bytes(content)
    model = LlamaModel(path, dry=True)
    assert model.vocabulary.tokenize("Once") == model.vocabulary.tokenize("<s>Once") == [1, 403]
    model.close()


@pytest.mark.parametrize("text", ["a\0b", "\0", "\ufeffOnce", "\u200d", "\ud7ff", "\U0010ffff"])
def test_strange_text_comes_back_as_it_was(speaking: LlamaModel, text: str) -> None:
    vocabulary = speaking.vocabulary
    pieces = map(vocabulary.piece, vocabulary.tokenize(text))
    assert b"".join(pieces) == b" " + text.encode()


def test_a_model_without_a_vocabulary_has_no_text(model: LlamaModel) -> None:
    vocabulary = model.vocabulary
    with pytest.raises(PromptError, match="no vocabulary: give token ids"):
        vocabulary.tokenize("hello")
    with pytest.raises(AssertionError):
        vocabulary.piece(5)
    assert (vocabulary.bos, vocabulary.eos) == ("", "")
    assert not vocabulary.ends(5)


# ------------------------------------------------------------------- decoding
def test_tokens_are_appended(model: LlamaModel) -> None:
    context = LlamaContext(model, SHAPE)
    assert context.num_tokens() == 0
    context.decode([1, 2, 3])
    context.decode([4])
    assert context.num_tokens() == 4
    logits = context.logits()
    assert logits.shape == (64,)
    assert (logits == fresh_logits(model, [1, 2, 3], [4])).all()
    assert np.abs(logits - fresh_logits(model, [1, 2, 3, 4])).max() < 1e-3
    assert np.abs(logits - fresh_logits(model, [4])).max() > 1e-2
    context.decode([5])
    assert (logits == fresh_logits(model, [1, 2, 3], [4])).all()  # they were a copy
    context.close()
    context.close()  # may be called twice


def test_a_full_context_keeps_what_it_has(model: LlamaModel) -> None:
    context = LlamaContext(model, SHAPE)
    context.decode([1, 2] * 64)
    context.decode([3, 4] * 62)
    with pytest.raises(ContextError, match="no room for 8 more tokens in the context: raise --ctx"):
        context.decode([5] * 8)
    assert context.num_tokens() == 252
    context.decode([5] * 4)
    assert (context.logits() == fresh_logits(model, [1, 2] * 64, [3, 4] * 62, [5] * 4)).all()
    context.close()


def test_the_threads_are_those_asked_for(model: LlamaModel) -> None:
    context = LlamaContext(model, ContextShape(ctx_tokens=64, batch_tokens=8, threads=3))
    assert llama.llama_n_threads(context.address) == 3
    assert llama.llama_n_threads_batch(context.address) == 3
    context.close()


@pytest.mark.parametrize("num_tokens", [0, 129])
def test_what_is_no_batch(num_tokens: int, model: LlamaModel) -> None:
    context = LlamaContext(model, SHAPE)
    with pytest.raises(AssertionError, match=f"{num_tokens} tokens are no batch"):
        context.decode([1] * num_tokens)
    context.close()


def test_a_token_that_does_not_exist(model: LlamaModel) -> None:
    context = LlamaContext(model, SHAPE)
    context.decode([1, 2])
    with pytest.raises((HaversackError, RuntimeError), match=r"invalid token\[1\] = 64"):
        context.decode([3, 64])
    context.decode([3])
    assert (context.logits() == fresh_logits(model, [1, 2], [3])).all()
    context.close()


# ------------------------------------------------------------------- callback


class Watcher:
    """The owner of a context, and a callback that stops after each node whose name begins with
    `name` and may fail there."""

    address: int | None = None
    goes_on = False

    def __init__(self, name: str, failure: BaseException | None = None) -> None:
        self.name, self.failure = name, failure
        self.asked, self.computed, self.ended = list[str](), list[str](), list[bool]()
        self._end = own.PassEnd(self._note_end)
        self.pass_end = native.address_of_function(self._end), None

    def on_node(self, node: int, ask: bool, _: object) -> bool:
        name = GraphNode(node).name
        if ask:
            self.asked.append(name)
            return name.startswith(self.name)
        self.computed.append(name)
        return self.failure is None

    def _note_end(self, _: int | None, computed: bool) -> int:
        self.ended.append(computed)
        return 0 if self.failure is None else 1

    def after_pass(self, failure: int) -> BaseException | None:
        error, self.failure = self.failure, None
        assert failure == int(error is not None)
        return error


def test_a_callback_sees_every_node(model: LlamaModel) -> None:
    watcher = Watcher("ffn_moe_topk")
    context = LlamaContext(model, SHAPE, watcher, on_node=watcher.on_node)
    context.decode([1, 2, 3])
    assert watcher.computed == ["ffn_moe_topk-0", "ffn_moe_topk-1"]
    assert {"ffn_moe_up-1", "ffn_moe_down-0", "result_output"} <= set(watcher.asked)
    assert watcher.ended == [True]
    assert (context.logits() == fresh_logits(model, [1, 2, 3])).all()
    context.close()


@pytest.mark.parametrize("tokens", [[4], [4, 5, 6]])
def test_a_callback_that_fails_stops_the_graph(tokens: list[int], model: LlamaModel) -> None:
    watcher = Watcher("ffn_moe_topk-0")
    context = LlamaContext(model, SHAPE, watcher, on_node=watcher.on_node)
    context.decode([1, 2, 3])
    watcher.failure = OSError("the disk is gone")
    with pytest.raises(OSError, match="the disk is gone"):
        context.decode(tokens)
    assert len(watcher.ended) == 2
    assert watcher.asked[-1] != "result_output"
    assert context.num_tokens() == 3
    context.decode(tokens)  # the next call is not concerned
    assert (context.logits() == fresh_logits(model, [1, 2, 3], tokens)).all()
    context.close()


# ------------------------------------------------------------------- stopping
class CountingFlag(StopFlag):
    """Counts how often it was checked: once for each node of a graph, and after the graph. At the
    tenth look `other` is started, and ends before that look does."""

    other: threading.Thread | None = None

    def __init__(self) -> None:
        self.looks = 0
        super().__init__()

    @property
    def requested(self) -> bool:
        self.looks += 1
        if self.looks == 10 and self.other is not None:
            self.other.start()
            self.other.join()
        return super().requested


def test_another_thread_stops_a_long_prefill(tiny_model: Callable[..., Path]) -> None:
    model = LlamaModel(tiny_model("qwen3moe"))
    stop = CountingFlag()
    context = LlamaContext(model, ContextShape(2048, batch_tokens=2048, threads=1), stop=stop)
    tokens = [1, 2, 3, 4] * 500
    context.decode([7, 8, 9])
    context.decode(tokens)
    looks_of_all = stop.looks
    context.forget(3)
    stop.looks, stop.other = 0, threading.Thread(target=stop.request)
    with pytest.raises(CancelledError):
        context.decode(tokens)
    assert looks_of_all > 50
    assert 10 <= stop.looks < looks_of_all / 2
    assert context.num_tokens() == 3
    stop.clear()
    context.decode([4, 5])
    assert (context.logits() == fresh_logits(model, [7, 8, 9], [4, 5])).all()
    context.close()
    model.close()


def test_a_request_before_the_call_counts(model: LlamaModel) -> None:
    context = LlamaContext(model, SHAPE)
    context.stop.request()
    for tokens in ([1], [1, 2, 3]):
        with pytest.raises(CancelledError):
            context.decode(tokens)
    assert context.num_tokens() == 0
    context.close()


# ----------------------------------------------------------------- forgetting
@pytest.mark.parametrize("architecture", ["qwen3moe", "deepseek2", "gpt-oss", "gemma4"])
def test_attention_forgets_from_a_position_on(
    architecture: str, tiny_model: Callable[..., Path]
) -> None:
    """This holds too where layers see only a window of 64 tokens, beyond which they forget."""
    model = LlamaModel(tiny_model(architecture, shape=SMALL))
    first, second, third = [1, 2, 3] * 10, [4, 5] * 60, [6, 7, 8]
    context = LlamaContext(model, SHAPE)
    context.decode(first)
    context.decode(second)
    context.forget(len(first))
    assert context.num_tokens() == len(first)
    context.decode(third)
    assert context.num_tokens() == len(first) + len(third)
    assert (context.logits() == fresh_logits(model, first, third)).all()
    context.forget(0)
    context.decode(third)
    assert (context.logits() == fresh_logits(model, third)).all()
    context.forget(100)  # there is nothing behind that
    assert context.num_tokens() == len(third)
    context.close()
    model.close()


@pytest.mark.parametrize("architecture", ["lfm2moe", "qwen3next"])
def test_a_recurrent_model_forgets_all_or_nothing(
    architecture: str, tiny_model: Callable[..., Path]
) -> None:
    model = LlamaModel(tiny_model(architecture, shape=SMALL))
    context = LlamaContext(model, SHAPE)
    context.decode([1, 2, 3])
    context.decode([4])
    context.forget(4)
    assert context.num_tokens() == 4
    context.decode([5])
    assert (context.logits() == fresh_logits(model, [1, 2, 3], [4], [5])).all()
    context.forget(3)
    assert context.num_tokens() == 0
    context.decode([1, 2, 3])
    context.decode([6])
    assert (context.logits() == fresh_logits(model, [1, 2, 3], [6])).all()
    context.close()
    model.close()


@pytest.mark.parametrize("architecture", ["lfm2moe", "qwen3next"])
def test_a_recurrent_model_starts_again_after_a_failure(
    architecture: str, tiny_model: Callable[..., Path]
) -> None:
    model = LlamaModel(tiny_model(architecture, shape=SMALL))
    watcher = Watcher("ffn_moe_topk-1")
    context = LlamaContext(model, SHAPE, watcher, on_node=watcher.on_node)
    context.decode([1, 2, 3])
    watcher.failure = OSError("the disk is gone")
    with pytest.raises(OSError, match="the disk is gone"):
        context.decode([4, 5])
    num_tokens = context.num_tokens()
    assert num_tokens in (0, 3)  # whether its state had gone on already
    if num_tokens == 0:
        context.decode([1, 2, 3])
    context.decode([4, 5])
    assert (context.logits() == fresh_logits(model, [1, 2, 3], [4, 5])).all()
    context.close()
    model.close()
