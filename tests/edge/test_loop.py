"""Several sequences, one loop: which calls share a pass, which wait, and what an error ends."""

import asyncio
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from haversack import edge
from haversack.devices.llama import Row
from haversack.devices.storage import Buffer, DirectFile
from haversack.edge import schedule as schedule_module
from haversack.edge.planner import streamed
from haversack.offload.engine import Engine
from haversack.tools.models.architectures import TinyShape

TinyModel = Callable[..., Path]
SHAPE = TinyShape(num_experts=16)
PROMPTS = [[number, number + 1, 7] for number in range(1, 5)]
LONG = [1 + 7 * i % 200 for i in range(100)]
TIMEOUT_S = 120


def plan_of(path: Path, sequences: int, share: float | None = None) -> edge.Plan:
    planned = edge.plan(path, "1GiB", ctx=256, threads=1, batch=16, sequences=sequences)
    return planned if share is None else streamed(planned, share)


@pytest.fixture(params=[None, 0.25], ids=["resident", "streamed"])
def model(request: pytest.FixtureRequest, tiny_model: TinyModel, trunk_dir: Path) -> Any:
    """A random model of two sequences."""
    planned = plan_of(tiny_model(shape=SHAPE), 2, request.param)
    options = edge.LoadOptions(cache_dir=trunk_dir, warm_start=False)
    with edge.load(planned, options=options) as loaded:
        yield loaded
        loaded.check_integrity()


@pytest.fixture
def lone(tiny_model: TinyModel) -> Iterator[edge.Model]:
    """The same model with one sequence."""
    with edge.load(plan_of(tiny_model(shape=SHAPE), 1)) as loaded:
        yield loaded
        loaded.check_integrity()


class Passes:
    """Notes the sequences of each pass's rows, and may do something before it."""

    def __init__(self, model: edge.Model, before: Callable[[Sequence[Row]], None] | None = None):
        assert model._engine is not None
        context = model._engine.context
        self.seen: list[list[int]] = []
        self._compute, self._before = context.compute, before
        context.compute = self  # type: ignore[assignment]

    def __call__(self, rows: Sequence[Row]) -> None:
        self.seen.append([row.sequence for row in rows])
        if self._before is not None:
            self._before(rows)
        self._compute(rows)


def text_of(model: edge.Model, prompt: list[int], tokens: int = 8) -> str:
    return model.generate(prompt, tokens, temperature=0).text


def in_threads(*works: Callable[[], Any]) -> None:
    """Run all at once, each in a thread."""
    threads = [threading.Thread(target=work) for work in works]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(TIMEOUT_S)
        assert not thread.is_alive()


# ------------------------------------------------------------- computed together
def test_sequences_share_passes(model: edge.Model) -> None:
    passes = Passes(model)
    first, second = (model.generate(prompt, 8, temperature=0) for prompt in PROMPTS[:2])
    texts = ["", ""]
    for pieces in zip(first, second, strict=True):
        texts = [text + piece for text, piece in zip(texts, pieces, strict=True)]
    assert [len(text.split()) for text in texts] == [8, 8]
    assert [rows for rows in passes.seen if len(rows) > 2] == [[0] * 3, [1] * 3]
    assert [0, 1] in passes.seen
    assert (first.finish_reason, second.finish_reason) == ("length", "length")


def test_one_sequence_serves_interleaved_generators_by_turns(lone: edge.Model) -> None:
    alone = [text_of(lone, prompt) for prompt in PROMPTS]
    generations = [lone.generate(prompt, 8, temperature=0) for prompt in PROMPTS]
    texts = ["", "", "", ""]
    for pieces in zip(*generations, strict=True):
        texts = [text + piece for text, piece in zip(texts, pieces, strict=True)]
    assert texts == alone


def test_a_lone_sampled_generation_is_computed_no_further_than_it_is_read(
    model: edge.Model,
) -> None:
    generation = model.generate(PROMPTS[0], 8)
    next(generation)
    next(generation)
    assert model.stats().tokens == 1


def test_passes_that_follow_at_once_give_the_text_of_passes_one_by_one(model: edge.Model) -> None:
    at_once = model.generate(PROMPTS[0], 40, temperature=0)
    expected = at_once.text
    model.check_integrity()
    one_by_one = model.generate(PROMPTS[0], 40, temperature=0, stop=("never in the text",))
    assert one_by_one.text == expected
    assert at_once.stats and one_by_one.stats
    assert at_once.stats.tokens == one_by_one.stats.tokens == 39
    rows = list(model.iter_logits(LONG[:40], 1))
    assert (model.logits(LONG[:40], 1) == rows).all()


@pytest.mark.parametrize("pause", [1, 2, 5, 9])
def test_stats_can_be_taken_at_a_pause(pause: int, model: edge.Model) -> None:
    rows = model.iter_logits(LONG[:40], 1, pause)
    for _ in range(pause):
        next(rows)
    before = model.stats()
    assert before.tokens == pause - 1
    assert len(list(rows)) == 40 - pause
    assert model.stats().since(before).tokens == 40 - pause


def test_a_reader_that_leaves_early_leaves_a_whole_sequence(model: edge.Model) -> None:
    """What was computed ahead of it is dropped or kept, and never half."""
    expected = text_of(model, PROMPTS[0])
    for num_read in range(1, 6):
        generation = model.generate(PROMPTS[0], 8, temperature=0)
        for _ in range(num_read):
            next(generation)
        generation.close()
        model.check_integrity()
        assert text_of(model, PROMPTS[0]) == expected


def test_threads_share_the_model(model: edge.Model) -> None:
    texts = dict[int, str]()
    in_threads(
        *(lambda n=number: texts.update({n: text_of(model, PROMPTS[n], 20)}) for number in range(4))
    )
    assert {number: len(text.split()) for number, text in texts.items()} == dict.fromkeys(
        range(4), 20
    )


def test_a_prompt_and_a_text_take_turns(model: edge.Model) -> None:
    text = model.generate(PROMPTS[0], 30, temperature=0)
    next(text)
    passes = Passes(model)
    next(model.generate(LONG, 4, temperature=0))
    batch = [1] * 16
    assert passes.seen[:6] == [[0], batch, [0], batch, [0], batch]


def test_each_generation_counts_its_own_tokens(model: edge.Model) -> None:
    first, second = model.generate(LONG, 6), model.generate(PROMPTS[0], 8)
    for _ in zip(first, second, strict=False):
        pass
    assert first.text and second.text
    assert first.stats is not None and second.stats is not None
    assert (first.stats.prompt_tokens, first.stats.tokens) == (len(LONG), 5)
    assert (second.stats.prompt_tokens, second.stats.tokens) == (3, 7)
    assert model.stats().tokens == 12


def test_a_new_call_takes_the_sequence_that_shares_most(model: edge.Model) -> None:
    other = [9, *LONG]
    for prompt in (LONG, other, LONG, other):
        assert text_of(model, [*prompt, 3], 2)
    before = model.stats()
    assert text_of(model, [*other, 5], 2) and text_of(model, [*LONG, 5], 2)
    assert model.stats().since(before).prompt_tokens == 2


def test_a_new_text_leaves_others_alone_that_share_little(model: edge.Model) -> None:
    prompts = [[1, *LONG], [1, *reversed(LONG)]]  # as texts that begin with the start token
    assert all(text_of(model, prompt, 2) for prompt in prompts)
    before = model.stats()
    assert all(text_of(model, prompt, 2) for prompt in prompts)
    assert model.stats().since(before).prompt_tokens == 0


@pytest.mark.parametrize("architecture", ["lfm2moe", "gpt-oss", "qwen35moe", "deepseek2"])
def test_other_architectures_hold_several_sequences(
    architecture: str, tiny_model: TinyModel
) -> None:
    with edge.load(plan_of(tiny_model(architecture), 3)) as model:
        alone = [text_of(model, prompt, 4) for prompt in PROMPTS[:3]]
        again = [text_of(model, prompt, 4) for prompt in reversed(PROMPTS[:3])]
        assert list(reversed(again)) == alone
        generations = [model.generate(prompt, 12, temperature=0) for prompt in PROMPTS[:3]]
        for _ in zip(*generations, strict=True):
            model.check_integrity()
        assert {generation.finish_reason for generation in generations} == {"length"}


# ------------------------------------------------------------------ unread generators
def test_a_generator_that_is_not_read_blocks_nobody(model: edge.Model) -> None:
    unread = model.generate(PROMPTS[0], 50, temperature=0)
    first = next(unread)
    for _ in range(3):
        assert len(text_of(model, PROMPTS[1], 20).split()) == 20
    assert len(unread.tokens) == 1
    assert len((first + "".join(unread)).split()) == 50


def test_an_unread_generator_gives_its_only_sequence_to_another_thread(
    lone: edge.Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(schedule_module, "_IDLE_S", 0.0)
    expected = [text_of(lone, prompt) for prompt in PROMPTS[:2]]
    unread, texts = lone.generate(PROMPTS[0], 8, temperature=0), list[str]()
    first = next(unread)
    in_threads(lambda: texts.append(text_of(lone, PROMPTS[1])))
    assert [first + "".join(unread), *texts] == expected


def test_a_dropped_generator_gives_its_sequence_back(lone: edge.Model) -> None:
    next(lone.generate(PROMPTS[0], 50))
    in_threads(lambda: text_of(lone, PROMPTS[1]))


# --------------------------------------------------------------------- cancelling
def test_a_call_that_waits_for_a_sequence_can_be_cancelled(lone: edge.Model) -> None:
    waiting = lone.generate(PROMPTS[1], 4)
    thread = threading.Thread(target=lambda: waiting.text)

    def wait_and_cancel(_: Sequence[Row]) -> None:
        if not thread.is_alive():
            thread.start()
            waiting.cancel()
            thread.join(TIMEOUT_S)

    Passes(lone, wait_and_cancel)
    running = lone.generate(PROMPTS[0], 1)
    assert running.text and running.finish_reason == "length"
    assert not thread.is_alive()
    assert (waiting.finish_reason, waiting.tokens) == ("cancelled", [])


@pytest.mark.parametrize("prompt", [LONG, PROMPTS[0]], ids=["prefill", "decode"])
def test_another_threads_call_can_be_cancelled(prompt: list[int], model: edge.Model) -> None:
    """Its rows are in the passes that this thread computes."""
    other = model.generate(prompt, 50)
    if len(prompt) < 16:
        next(other)
    other_thread = threading.Thread(target=lambda: list(other))

    def cancel(rows: Sequence[Row]) -> None:
        if any(row.sequence == 0 for row in rows):
            other.cancel()

    mine = model.generate(PROMPTS[1], 20, temperature=0)
    next(mine)
    Passes(model, cancel)
    other_thread.start()
    assert len((next(mine) + "".join(mine)).split()) == 19
    other_thread.join(TIMEOUT_S)
    assert not other_thread.is_alive() and other.finish_reason == "cancelled"


@pytest.mark.parametrize("architecture", ["qwen3moe", "lfm2moe"])
def test_an_aborted_pass_is_computed_again_for_the_others(
    architecture: str, tiny_model: TinyModel
) -> None:
    """The driver was cancelled in it. A recurrent neighbour loses its state and gets it back."""
    with edge.load(plan_of(tiny_model(architecture), 2)) as model:
        expected = text_of(model, PROMPTS[1])
        mine, other = model.generate(PROMPTS[0], 50), model.generate(PROMPTS[1], 8, temperature=0)
        pieces = [next(mine), next(other)]
        passes = Passes(model, lambda rows: mine.cancel() if len(rows) == 2 else None)
        assert len(list(mine)) <= 1 and mine.finish_reason == "cancelled"
        assert passes.seen[-1] == [0, 1]
        assert "".join([*pieces[1:], *other]) == expected


def test_ctrl_c_ends_the_call_of_the_thread_that_drives(model: edge.Model) -> None:
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        expected = text_of(model, PROMPTS[1])
        mine = model.generate(PROMPTS[0], 50)
        other = model.generate(PROMPTS[1], 8, temperature=0)
        pieces = [next(mine), next(other)][1:]
        passes = Passes(
            model, lambda rows: signal.raise_signal(signal.SIGINT) if len(rows) == 2 else None
        )
        with pytest.raises(KeyboardInterrupt):
            list(mine)
        assert passes.seen == [[0, 1]] and mine.finish_reason == "cancelled"
        assert "".join([*pieces, *other]) == expected
    finally:
        signal.signal(signal.SIGINT, before)


def test_ctrl_c_twice_in_a_pass_does_not_reach_the_next_call(model: edge.Model) -> None:
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        expected = text_of(model, PROMPTS[1])
        presses = [signal.SIGINT] * 2

        def press_twice(_: Sequence[Row]) -> None:
            while presses:
                signal.raise_signal(presses.pop())

        Passes(model, press_twice)
        with pytest.raises(KeyboardInterrupt):
            text_of(model, PROMPTS[0])
        assert presses == [] and text_of(model, PROMPTS[1]) == expected
        model.check_integrity()
    finally:
        signal.signal(signal.SIGINT, before)


def test_async_pieces_and_a_cancelled_task(model: edge.Model) -> None:
    async def told(generation: edge.Generation) -> str:
        return "".join([piece async for piece in generation])

    async def both() -> list[str]:
        return await asyncio.gather(
            *(told(model.generate(prompt, 10, temperature=0)) for prompt in PROMPTS[:2])
        )

    assert [len(text.split()) for text in asyncio.run(both())] == [10, 10]

    async def cancelled() -> edge.Generation:
        generation = model.generate(PROMPTS[0], 250)
        task = asyncio.create_task(told(generation))
        while not generation.tokens:
            await asyncio.sleep(0.001)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        return generation

    generation = asyncio.run(cancelled())
    assert list(generation) == [] and generation.finish_reason == "cancelled"
    assert len(generation.tokens) < 250


# ------------------------------------------------------------------------- errors
class FailingFile(DirectFile):
    """Fails its reads while `fails` is set."""

    fails = False

    def read_into(self, buffer: Buffer, offset: int, need_bytes: int) -> None:
        if FailingFile.fails:
            raise edge.StorageError(5, f"{self.path}: input/output error")
        super().read_into(buffer, offset, need_bytes)


def test_a_failing_drive_ends_the_calls_of_its_pass(
    tiny_model: TinyModel, trunk_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    planned = plan_of(tiny_model(shape=SHAPE), 2, 0.0)
    options = edge.LoadOptions(cache_dir=trunk_dir, warm_start=False, open_file=FailingFile)
    with edge.load(planned, options=options) as model:
        expected = [text_of(model, prompt) for prompt in PROMPTS[:2]]
        first, second = (model.generate(prompt, 50) for prompt in PROMPTS[:2])
        next(first)
        next(second)
        with monkeypatch.context() as broken:
            broken.setattr(FailingFile, "fails", True)
            for generation in (first, second):
                with pytest.raises(edge.StorageError, match="input/output error"):
                    list(generation)
        model.check_integrity()
        assert [text_of(model, prompt) for prompt in PROMPTS[:2]] == expected


def test_an_error_in_choosing_ends_one_call_only(
    known_answer_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other's thread chooses the token that fails."""
    with edge.load(plan_of(known_answer_model, 2)) as model:
        good, bad = model.generate("Once", 20, temperature=0), model.generate("A dog", 20)
        next(good)
        next(bad)
        monkeypatch.setattr(bad._call, "take", lambda _: 1 / 0)
        assert len(list(good)) > 5 and good.finish_reason == "length"
        with pytest.raises(ZeroDivisionError):
            for _ in range(5):  # what was computed before is still told
                next(bad)


# ------------------------------------------------------------------------ closing
def test_closing_ends_all_calls(tiny_model: TinyModel) -> None:
    model = edge.load(plan_of(tiny_model(shape=SHAPE), 2))
    left = [model.generate(prompt, 250) for prompt in PROMPTS]
    started = threading.Barrier(3)

    def read(generation: edge.Generation) -> None:
        next(generation)
        started.wait(TIMEOUT_S)
        list(generation)

    threads = [threading.Thread(target=read, args=(each,)) for each in left[:2]]
    for thread in threads:
        thread.start()
    started.wait(TIMEOUT_S)
    model.close()
    for thread in threads:
        thread.join(TIMEOUT_S)
        assert not thread.is_alive()
    assert {each.finish_reason for each in left[:2]} <= {"cancelled", "length"}
    with pytest.raises(edge.ClosedError, match="closed"):
        next(left[2])


def test_what_may_not_be_done_inside_a_pass(tiny_model: TinyModel) -> None:
    model = edge.load(plan_of(tiny_model(shape=SHAPE), 1))
    refused: list[str] = []

    def misbehave(_: Sequence[Row]) -> None:
        for call in (model.check_integrity, model.close):
            with pytest.raises(edge.ClosedError, match="a call of this thread is still running"):
                call()
            refused.append(call.__name__)

    Passes(model, misbehave)
    generation = model.generate(PROMPTS[0], 3)
    assert generation.text == "" and generation.finish_reason == "cancelled"
    assert refused == ["check_integrity", "close"]
    model.close()


def test_a_call_inside_a_pass_of_its_own_thread_is_refused(
    tiny_model: TinyModel, trunk_dir: Path
) -> None:
    options = edge.LoadOptions(cache_dir=trunk_dir)
    with edge.load(plan_of(tiny_model(shape=SHAPE), 2, 0.5), options=options) as model:
        text = text_of(model, [1, 2, 3])
        calls: list[Callable[[], Any]] = [
            lambda: model.verify([1]),
            lambda: text_of(model, [4]),
            lambda: model.rewind(0),
        ]
        for call in calls:

            def watch(*_: Any, call: Callable[[], Any] = call) -> None:
                call()

            model.watch_routing(watch)
            with pytest.raises(edge.ClosedError, match="a call of this thread is still running"):
                text_of(model, [1, 2, 3])
        model.watch_routing(None)
        assert text_of(model, [1, 2, 3]) == text
        model.check_integrity()


def test_a_new_context_is_filled_again(model: edge.Model) -> None:
    """As watching the routers needs one: what was begun goes on."""
    expected = text_of(model, PROMPTS[0])
    generation = model.generate(PROMPTS[0], 8, temperature=0)
    first = next(generation)

    def empty(engine: Engine) -> None:
        for sequence in model._loop.sequences:
            engine.context.forget(0, sequence.number)
        model._loop.start_anew()

    model._loop.between_passes(empty)
    assert first + "".join(generation) == expected


@pytest.mark.parametrize("sequences", [0, 65])
def test_how_many_sequences_there_may_be(sequences: int, tiny_model: TinyModel) -> None:
    with pytest.raises(edge.PromptError, match=f"sequences is {sequences}: give a whole number"):
        plan_of(tiny_model(shape=SHAPE), sequences)
