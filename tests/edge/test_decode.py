"""A decoder keeps what it may of the context, and its logits never depend on what was there."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from haversack import edge
from haversack.edge.decode import Decoder
from haversack.edge.planner import streamed
from haversack.edge.templates import ChatTemplate
from haversack.offload.engine import Engine, open_resident
from haversack.tools.models.architectures import TinyShape

TinyModel = Callable[..., Path]
Logits = npt.NDArray[np.float32]
SMALL = TinyShape(num_hidden_layers=2, num_experts=4, vocab_size=64)
BATCH = 32
ATTENTION, WINDOWED, RECURRENT = ["qwen3moe", "deepseek2"], ["gpt-oss"], ["lfm2moe", "qwen3next"]


@contextmanager
def decoder_of(path: Path, ctx: int = 256) -> Iterator[Decoder]:
    planned = edge.plan(path, ram="1GiB", ctx=ctx, threads=1, batch=BATCH)
    engine = open_resident(planned.path, planned.shape)
    try:
        yield Decoder(engine, planned)
    finally:
        engine.close()


def after(decoder: Decoder, *prompts: list[int]) -> Logits:
    for prompt in prompts:
        decoder.prefill(prompt)
        assert list(decoder.tokens) == prompt
    return decoder.logits()


def computed_for(decoder: Decoder, prompt: list[int]) -> int:
    """How many tokens `prompt` costs."""
    before = decoder.stats()
    decoder.prefill(prompt)
    return decoder.stats().since(before).prompt_tokens


def numbers(count: int, start: int = 0) -> list[int]:
    return [(7 * i + start) % 64 for i in range(count)]


FIRST = numbers(100)
BRANCH = FIRST[:70] + numbers(40, start=3)  # other than FIRST from its 71st token on


@pytest.mark.parametrize("architecture", ATTENTION + WINDOWED)
def test_whole_batches_of_a_common_beginning_are_kept(
    architecture: str, tiny_model: TinyModel
) -> None:
    with decoder_of(tiny_model(architecture, shape=SMALL)) as decoder:
        anew = after(decoder, BRANCH)
        decoder.clear()
        first = after(decoder, FIRST)
        for token in (5, 6, 7):
            decoder.step(token)
        assert computed_for(decoder, BRANCH) == len(BRANCH) - 2 * BATCH
        assert (decoder.logits() == anew).all()
        assert (after(decoder, FIRST) == first).all()  # and back again, as the first time


@pytest.mark.parametrize("architecture", RECURRENT)
def test_a_recurrent_model_computes_all_again(architecture: str, tiny_model: TinyModel) -> None:
    with decoder_of(tiny_model(architecture, shape=SMALL)) as decoder:
        anew = after(decoder, BRANCH)
        after(decoder, FIRST)
        assert computed_for(decoder, BRANCH) == len(BRANCH)
        assert (decoder.logits() == anew).all()


@pytest.mark.parametrize("architecture", ["gpt-oss", "gemma4"])
def test_layers_that_see_a_window_keep_what_lies_behind_it(
    architecture: str, tiny_model: TinyModel
) -> None:
    """The window is of 64 tokens, and 600 came before the branch."""
    long, branch = numbers(600), [*numbers(200), 9, 9, 9]
    with decoder_of(tiny_model(architecture, shape=SMALL), ctx=640) as decoder:
        anew = after(decoder, branch)
        decoder.clear()
        after(decoder, long)
        assert computed_for(decoder, branch) == len(branch) - 6 * BATCH
        assert (decoder.logits() == anew).all()


@pytest.mark.parametrize("architecture", ATTENTION + WINDOWED + RECURRENT)
def test_a_prompt_asked_for_twice_gives_the_same_bits(
    architecture: str, tiny_model: TinyModel
) -> None:
    with decoder_of(tiny_model(architecture, shape=SMALL)) as decoder:
        first = after(decoder, FIRST)
        assert computed_for(decoder, FIRST) > 0
        assert (decoder.logits() == first).all()
        assert (after(decoder, FIRST[:64], FIRST[:64]) == after(decoder, FIRST[:64])).all()


def test_tokens_decoded_singly_are_in_no_whole_batch(tiny_model: TinyModel) -> None:
    with decoder_of(tiny_model(shape=SMALL)) as decoder:
        anew = after(decoder, BRANCH)
        decoder.clear()
        decoder.prefill(FIRST[:10])
        for token in FIRST[10:]:
            decoder.step(token)
        assert computed_for(decoder, BRANCH) == len(BRANCH)
        assert (decoder.logits() == anew).all()


# ------------------------------------------------------------------- interrupts
class InterruptAfter:
    """Stands for a context's method: does its work, then is interrupted at once."""

    def __init__(self, engine: Engine, name: str) -> None:
        self._context, self._name = engine.context, name
        self._method = getattr(engine.context, name)
        setattr(engine.context, name, self)

    def __call__(self, *arguments: object) -> None:
        setattr(self._context, self._name, self._method)
        self._method(*arguments)
        raise KeyboardInterrupt


@pytest.mark.parametrize("method", ["_decode", "decode", "forget"])
@pytest.mark.parametrize("architecture", ATTENTION + WINDOWED + RECURRENT)
def test_an_interrupt_leaves_the_book_as_the_context_is(
    architecture: str, method: str, tiny_model: TinyModel
) -> None:
    with decoder_of(tiny_model(architecture, shape=SMALL)) as decoder:
        good = after(decoder, FIRST[:40], FIRST[:50])
        decoder.clear()
        decoder.prefill(FIRST[:40])
        InterruptAfter(decoder.engine, method)
        with pytest.raises(KeyboardInterrupt):
            decoder.prefill([9] * 20) if method == "forget" else decoder.step(9)
        if method != "forget":
            assert (after(decoder, FIRST[:50]) == good).all()
        anew = after(decoder, BRANCH)
        decoder.clear()
        assert (after(decoder, BRANCH) == anew).all()


@pytest.mark.parametrize("architecture", RECURRENT)
def test_a_token_in_no_book_does_not_change_what_goes_on(
    architecture: str, tiny_model: TinyModel
) -> None:
    with decoder_of(tiny_model(architecture, shape=SMALL)) as decoder:
        good = after(decoder, FIRST[:40], FIRST[:50])
        decoder.clear()
        decoder.prefill(FIRST[:40])
        decoder.engine.context.decode([9])
        assert (after(decoder, FIRST[:50]) == good).all()


# ------------------------------------------------------------- a thinking model
THINKING_TEMPLATE = """{% for message in messages -%}
{{ message['role'] }}:{{ message['content'].split('</think>')[-1] }}
{% endfor %}assistant:"""


@pytest.mark.parametrize("share", ["resident", 0.25])
def test_a_template_that_drops_thinking_keeps_whole_batches(
    share: str | float, known_answer_model: Path, trunk_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    planned = edge.plan(known_answer_model, ram="1GiB", ctx=512, threads=1, batch=BATCH)
    if not isinstance(share, str):
        planned = streamed(planned, share)
    template = ChatTemplate(THINKING_TEMPLATE, bos="<s>", eos="</s>")
    monkeypatch.setattr(edge.Model, "chat_template", lambda _: template)
    first = [{"role": "user", "content": "Tell me a long story about a little dog. " * 4}]
    reply = {"role": "assistant", "content": "<think>a dog, a story</think>Once upon a time"}
    second = [*first, reply, {"role": "user", "content": "And then?"}]
    options = edge.LoadOptions(cache_dir=trunk_dir, warm_start=False)
    with edge.load(planned, options=options) as model:
        alone = model.chat(second, max_tokens=8, temperature=0)
        expected = alone.text
        model.chat(first, max_tokens=8, temperature=0).text  # noqa: B018
        before = model.stats()
        again = model.chat(second, max_tokens=8, temperature=0)
        assert again.text == expected
        computed = model.stats().since(before).prompt_tokens
        assert 0 < computed < again.prompt_tokens - BATCH
