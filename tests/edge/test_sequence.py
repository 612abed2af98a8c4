"""A sequence keeps what it may of its tokens; verifying and rewinding leave the right bits."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from haversack import edge
from haversack.devices.llama import LlamaContext
from haversack.edge.call import Call
from haversack.edge.loop import EngineLoop
from haversack.edge.planner import streamed
from haversack.edge.speculate import asked_for, speculation_of
from haversack.edge.templates import ChatTemplate
from haversack.offload.engine import Engine, open_resident
from haversack.tools.models.architectures import TinyShape

TinyModel = Callable[..., Path]
Logits = npt.NDArray[np.float32]
SMALL = TinyShape(num_hidden_layers=2, num_experts=4, vocab_size=64)
BATCH = 32
ATTENTION, WINDOWED, RECURRENT = ["qwen3moe", "deepseek2"], ["gpt-oss"], ["lfm2moe", "qwen3next"]


class PromptCall(Call):
    """Computes a prompt and takes the logits after it."""

    def __init__(self, tokens: Sequence[int]) -> None:
        super().__init__(tokens, len(tokens))

    def take(self, logits: Logits) -> None:
        self.results.append(logits.copy())
        self.end()


class RepeatableCall(PromptCall):
    """One whose bits must not depend on what was computed before it."""

    is_repeatable = True


@contextmanager
def loop_of(path: Path, ctx: int = 256) -> Iterator[EngineLoop]:
    planned = edge.plan(path, ram="1GiB", ctx=ctx, threads=1, batch=BATCH)
    engine = open_resident(planned.path, planned.shape)
    try:
        yield EngineLoop(engine, planned, speculation_of(asked_for("auto"), True, ctx))
    finally:
        engine.close()


def after(loop: EngineLoop, *prompts: list[int]) -> Logits:
    """The logits after the last prompt, computed one after the other."""
    calls = [PromptCall(prompt) for prompt in prompts]
    for call in calls:
        loop.advance(call)
        assert loop.sequences[0].tokens == call.tokens
        loop.check_integrity()
    logits: Logits = calls[-1].results[0]
    return logits


def computed_for(loop: EngineLoop, prompt: list[int]) -> int:
    """How many tokens `prompt` costs."""
    before = loop.figures.stats()
    after(loop, prompt)
    return loop.figures.stats().since(before).prompt_tokens


def by_hand(context: LlamaContext, *batches: Sequence[int]) -> Logits:
    """The logits after `batches`, computed in an empty context."""
    context.forget(0)
    for batch in batches:
        context.decode(batch)
    return context.logits()


def batches(tokens: Sequence[int]) -> list[Sequence[int]]:
    return [tokens[first : first + BATCH] for first in range(0, len(tokens), BATCH)]


def numbers(count: int, start: int = 0) -> list[int]:
    return [(7 * i + start) % 64 for i in range(count)]


FIRST = numbers(100)
BRANCH = FIRST[:70] + numbers(40, start=3)  # other than FIRST from its 71st token on


# ---------------------------------------------------------------------- prompts
@pytest.mark.parametrize("architecture", ATTENTION + WINDOWED)
def test_the_longest_common_beginning_is_kept(architecture: str, tiny_model: TinyModel) -> None:
    with loop_of(tiny_model(architecture, shape=SMALL)) as loop:
        first = after(loop, FIRST)
        assert computed_for(loop, BRANCH) == len(BRANCH) - 70
        branch = after(loop, BRANCH)
        assert (branch == after(loop, BRANCH)).all()
        context = loop.engine.context
        assert (first == by_hand(context, *batches(FIRST))).all()
        context.forget(70)
        for batch in batches(BRANCH[70:]):
            context.decode(batch)
        assert (branch == context.logits()).all()


@pytest.mark.parametrize("architecture", RECURRENT)
def test_a_recurrent_model_computes_all_again(architecture: str, tiny_model: TinyModel) -> None:
    with loop_of(tiny_model(architecture, shape=SMALL)) as loop:
        anew = after(loop, BRANCH)
        after(loop, FIRST)
        assert computed_for(loop, BRANCH) == len(BRANCH)
        assert (after(loop, BRANCH) == anew).all()


@pytest.mark.parametrize("architecture", ["gpt-oss", "gemma4"])
def test_layers_that_see_a_window_keep_what_lies_behind_it(
    architecture: str, tiny_model: TinyModel
) -> None:
    """The window is of 64 tokens, and 600 came before the branch."""
    long, branch = numbers(600), [*numbers(192), 9, 9, 9]
    with loop_of(tiny_model(architecture, shape=SMALL), ctx=640) as loop:
        anew = after(loop, branch)
        after(loop, [1], long)
        assert computed_for(loop, branch) == 3
        assert (after(loop, branch) == anew).all()


@pytest.mark.parametrize("architecture", ATTENTION + WINDOWED + RECURRENT)
def test_a_prompt_asked_for_again_costs_nothing_and_gives_the_same_bits(
    architecture: str, tiny_model: TinyModel
) -> None:
    with loop_of(tiny_model(architecture, shape=SMALL)) as loop:
        first = after(loop, FIRST)
        assert computed_for(loop, FIRST) == 0
        assert (after(loop, FIRST) == first).all()
        assert computed_for(loop, FIRST[:99]) > 0  # no logits were kept there
        assert computed_for(loop, FIRST[:99]) == 0


@pytest.mark.parametrize("architecture", ATTENTION + WINDOWED)
def test_a_prompt_is_asked_for_again_after_a_text(architecture: str, tiny_model: TinyModel) -> None:
    """As `/regen` does: the text is dropped, and the logits after the prompt were kept."""
    path = tiny_model(architecture, shape=SMALL)
    with edge.load(path, ram="1GiB", ctx=256, threads=1) as model:
        text = model.generate(FIRST, 20, temperature=0).text
        before = model.stats()
        assert model.generate(FIRST, 20, temperature=0).text == text
        assert model.stats().since(before).prompt_tokens == 0
        model.check_integrity()


def test_a_prompt_that_goes_on_keeps_all(tiny_model: TinyModel) -> None:
    with loop_of(tiny_model("lfm2moe", shape=SMALL)) as loop:
        after(loop, FIRST[:40])
        assert computed_for(loop, FIRST[:50]) == 10


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


@pytest.mark.parametrize("method", ["_compute", "compute", "forget"])
@pytest.mark.parametrize("architecture", ATTENTION + WINDOWED + RECURRENT)
def test_an_interrupt_leaves_the_book_as_the_context_is(
    architecture: str, method: str, tiny_model: TinyModel
) -> None:
    with loop_of(tiny_model(architecture, shape=SMALL)) as loop:
        good = after(loop, FIRST[:40], FIRST[:50])
        after(loop, [1], FIRST[:40])
        InterruptAfter(loop.engine, method)
        interrupted = PromptCall([9] * 20 if method == "forget" else [*FIRST[:40], 9])
        with pytest.raises(KeyboardInterrupt):
            loop.advance(interrupted)
        loop.leave(interrupted)
        loop.check_integrity()
        if method != "forget":
            assert (after(loop, FIRST[:40], FIRST[:50]) == good).all()
        anew = after(loop, [1], BRANCH)
        assert (after(loop, [1], BRANCH) == anew).all()


@pytest.mark.parametrize("architecture", RECURRENT)
def test_a_token_in_no_book_does_not_change_what_goes_on(
    architecture: str, tiny_model: TinyModel
) -> None:
    with loop_of(tiny_model(architecture, shape=SMALL)) as loop:
        good = after(loop, FIRST[:50])
        after(loop, FIRST[:40])
        loop.engine.context.decode([9])
        assert (after(loop, FIRST[:50]) == good).all()


# ------------------------------------------------------------- a thinking model
THINKING_TEMPLATE = """{% for message in messages -%}
{{ message['role'] }}:{{ message['content'].split('</think>')[-1] }}
{% endfor %}assistant:"""


@pytest.mark.parametrize("share", ["resident", 0.25])
def test_a_template_that_drops_thinking_keeps_what_stands_before_it(
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
        kept = model.chat(first, max_tokens=8, temperature=0)
        assert kept.text
        before = model.stats()
        again = model.chat(second, max_tokens=8, temperature=0)
        assert again.text == expected
        computed = model.stats().since(before).prompt_tokens
        assert 0 < computed <= again.prompt_tokens - kept.prompt_tokens


# ------------------------------------------------------------ verify and rewind
def singly(model: edge.Model, tokens: Sequence[int], prefill: int) -> Logits:
    return model.logits(tokens, prefill)[1:]


@pytest.mark.parametrize("architecture", ATTENTION + WINDOWED + RECURRENT)
def test_rewinding_leaves_the_bits_of_never_having_gone_there(
    architecture: str, tiny_model: TinyModel
) -> None:
    """Also of a recurrent model, whose state is brought back."""
    path = tiny_model(architecture, shape=SMALL)
    with edge.load(path, ram="1GiB", ctx=256, threads=1) as model:
        expected = singly(model, FIRST[:60], 50)
        model.logits(FIRST[:50], 50)
        for token, row in zip(FIRST[50:60], expected, strict=True):
            model.verify([9, 9, 9])
            model.rewind(3)
            model.check_integrity()
            assert (model.verify([token]) == row).all()


@pytest.mark.parametrize("architecture", ["qwen3moe", "lfm2moe"])
def test_the_first_tokens_of_a_verification_are_kept(
    architecture: str, tiny_model: TinyModel
) -> None:
    path = tiny_model(architecture, shape=SMALL)
    with edge.load(path, ram="1GiB", ctx=256, threads=1) as model:
        expected = singly(model, FIRST[:52], 50)
        model.logits(FIRST[:50], 50)
        model.verify([FIRST[50], 9, 9])
        model.rewind(2)
        assert np.abs(model.verify([FIRST[51]])[0] - expected[1]).max() < 1e-3
        model.rewind(0)
        model.check_integrity()


def test_what_a_recurrent_model_cannot_forget(tiny_model: TinyModel) -> None:
    with edge.load(tiny_model("lfm2moe", shape=SMALL), ram="1GiB", ctx=64, threads=1) as model:
        model.logits(FIRST[:20], 20)
        with pytest.raises(edge.PromptError, match=r"cannot forget 1 tokens: rewind at most"):
            model.rewind(1)
        model.verify([1, 2])
        with pytest.raises(edge.PromptError, match=r"cannot forget 3 tokens"):
            model.rewind(3)
        model.rewind(2)
        model.rewind(20)  # all of it can always be forgotten
        model.check_integrity()


def test_what_cannot_be_verified(tiny_model: TinyModel) -> None:
    with edge.load(tiny_model(shape=SMALL), ram="1GiB", ctx=32, threads=1) as model:
        model.logits(FIRST[:30], 30)
        for tokens in ([], [1] * 8):
            with pytest.raises(edge.PromptError, match=f"{len(tokens)} tokens are given: give 1"):
                model.verify(tokens)
        with pytest.raises(edge.ContextError, match=r"30 tokens are held and 3 come.*32.*--ctx"):
            model.verify([1, 2, 3])
        with pytest.raises(edge.PromptError, match="num_tokens is 31: the sequence has 30"):
            model.rewind(31)
        assert model.verify([1, 2]).shape == (2, 64)


def test_a_text_can_be_verified_after_it_was_generated(tiny_model: TinyModel) -> None:
    with edge.load(tiny_model(shape=SMALL), ram="1GiB", ctx=64, threads=1) as model:
        generation = model.generate(FIRST[:10], 5, temperature=0)
        assert generation.text
        before = model.stats()
        row = model.verify(generation.tokens[-1:])[0]
        expected = model.logits([*FIRST[:10], *generation.tokens], 10)[-1]
        assert (row == expected).all()
        spent = model.stats().since(before)
        assert (spent.prompt_tokens, spent.tokens) == (10, 6)


def test_a_repeatable_prompt_has_the_bits_of_a_new_context(tiny_model: TinyModel) -> None:
    text = [token % SMALL.vocab_size for token in range(3, 80)]
    with loop_of(tiny_model("qwen3moe", shape=SMALL)) as loop:
        fresh = {end: after(loop, [1], [2], text[:end]) for end in (30, 70)}
    for end, others in ((30, text[:20]), (70, text[:60]), (70, text[:10])):
        with loop_of(tiny_model("qwen3moe", shape=SMALL)) as loop:
            after(loop, others)
            before = loop.figures.stats()
            call = RepeatableCall(text[:end])
            loop.advance(call)
            assert np.array_equal(call.results[0], fresh[end])
            computed = loop.figures.stats().since(before).prompt_tokens
            # what was computed in whole batches stays
            assert computed == end - len(others) // BATCH * BATCH

            again = RepeatableCall(text[:end])
            loop.advance(again)
            assert np.array_equal(again.results[0], fresh[end])
            assert loop.figures.stats().since(before).prompt_tokens == computed
