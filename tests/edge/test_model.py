"""A loaded model: the known answer, cancellation, two threads, errors that leave it usable."""

import gc
import itertools
import json
import os
import re
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest

from haversack import edge
from haversack.devices.ggml import GgufHeader
from haversack.devices.memory import anonymous_bytes
from haversack.devices.storage import Buffer, DirectFile
from haversack.edge.planner import streamed
from haversack.tools.models.architectures import TinyShape
from haversack.tools.models.known_answer import SOURCES

EXPECTED = (SOURCES / "expected_greedy.txt").read_text()
EXPECTED_IDS = json.loads((SOURCES / "expected_greedy_ids.json").read_text())
NUM_EXPECTED = 200


@pytest.fixture(scope="module", params=["resident", 0.0, 0.25, 1.0])
def storyteller(
    request: pytest.FixtureRequest, known_answer_model: Path, trunk_dir: Path
) -> Iterator[edge.Model]:
    """The known-answer model, in memory or with slots for a share of its experts."""
    planned = edge.plan(known_answer_model, ram="1GiB", ctx=512, threads=1)
    if request.param != "resident":
        planned = streamed(planned, request.param)
    with edge.load(planned, seed=7, options=edge.LoadOptions(cache_dir=trunk_dir)) as model:
        yield model
        model.check_integrity()


@pytest.fixture
def random_model(tiny_model: Any, trunk_dir: Path) -> Iterator[edge.Model]:
    """A random model without a vocabulary, with slots for a quarter of its experts."""
    path = tiny_model("qwen3moe", shape=TinyShape(num_experts=16))
    planned = streamed(edge.plan(path, ram="1GiB", ctx=256, threads=1), 0.25)
    options = edge.LoadOptions(cache_dir=trunk_dir, warm_start=False)
    with edge.load(planned, options=options) as model:
        yield model


# ---------------------------------------------------------------- known answer
def test_the_known_story(storyteller: edge.Model) -> None:
    story = storyteller.generate("", max_tokens=NUM_EXPECTED, temperature=0)
    assert story.text == EXPECTED
    assert story.finish_reason == "length"
    assert len(story.tokens) == NUM_EXPECTED


def test_the_same_seed_tells_the_same_story(storyteller: edge.Model) -> None:
    def told(seed: int) -> str:
        return storyteller.generate("One day", max_tokens=40, temperature=1, seed=seed).text

    first, again, other = told(1), told(1), told(2)
    assert first == again != other


def test_the_seed_of_the_model_makes_all_repeatable(known_answer_model: Path) -> None:
    def told() -> list[str]:
        with edge.load(known_answer_model, ram="1GiB", threads=1, seed=3) as model:
            return [model.generate("A dog", max_tokens=20).text for _ in range(2)]

    first, again = told(), told()
    assert first == again and first[0] != first[1]


# -------------------------------------------------------------------- the text
def test_a_byte_order_mark_is_no_content(storyteller: edge.Model) -> None:
    def told(prompt: str) -> list[int]:
        return storyteller.generate(prompt, 5, temperature=0).tokens

    assert told("\ufeffOne day") == told("One day")
    said, marked = ([{"role": "user", "content": text}] for text in ("A dog", "\ufeffA dog"))
    plain = storyteller.chat(said, 5, temperature=0)
    assert storyteller.chat(marked, 5, temperature=0).text == plain.text
    assert storyteller.tokenize("\ufeffOne day") != storyteller.tokenize("One day")  # as it is


def test_a_prompt_that_begins_with_the_start_token_gets_no_second(storyteller: edge.Model) -> None:
    plain, written = storyteller.generate("One day", 5), storyteller.generate("<s>One day", 5)
    assert written.prompt_tokens == plain.prompt_tokens
    said = [{"role": "user", "content": "<s>One day"}]
    assert storyteller.chat(said, 5).prompt_tokens == plain.prompt_tokens


def test_a_text_that_cannot_fit_is_refused_before_it_is_tokenized(storyteller: edge.Model) -> None:
    text = "Once upon a time" * 200_000
    words = r"the prompt has at least (\d+) tokens, the context holds 512"
    with pytest.raises(edge.ContextError, match=words) as refused:
        storyteller.generate(text)
    found = re.search(words, str(refused.value))
    assert found is not None and 512 < int(found[1]) <= len(storyteller.tokenize(text))
    with pytest.raises(edge.ContextError, match=r"the prompt has \d+ tokens"):
        _ = storyteller.generate("a " * 3000).text


def test_it_ends_before_a_stop_string(storyteller: edge.Model) -> None:
    story = storyteller.generate("", max_tokens=200, temperature=0, stop=(" Lily",))
    assert story.text == EXPECTED.split(" Lily")[0]
    assert story.finish_reason == "stop"


def test_a_grammar_leaves_only_what_it_allows(storyteller: edge.Model) -> None:
    answer = storyteller.generate("Is it red?", 20, temperature=0, grammar='root ::= "yes" | "no"')
    assert answer.text.strip() in ("yes", "no")


def test_a_schema_gives_json(storyteller: edge.Model) -> None:
    schema = {"type": "object", "properties": {"ok": {"type": "boolean"}}, "required": ["ok"]}
    answer = storyteller.generate("", max_tokens=60, temperature=0, json_schema=schema)
    assert isinstance(json.loads(answer.text)["ok"], bool)


def test_ids_stand_for_text_where_there_is_no_vocabulary(random_model: edge.Model) -> None:
    from_ids = random_model.generate([1, 2, 3], max_tokens=5, temperature=0)
    from_text = random_model.generate("1 2 3", max_tokens=5, temperature=0)
    assert from_ids.text == from_text.text == "".join(f"{token} " for token in from_ids.tokens)


def test_a_conversation_goes_on_where_it_was(storyteller: edge.Model) -> None:
    messages = [{"role": "user", "content": "Once upon a time"}]
    reply = storyteller.chat(messages, max_tokens=10, temperature=0).text
    messages += [{"role": "assistant", "content": reply}, {"role": "user", "content": " Then"}]
    before = storyteller.stats()
    second = storyteller.chat(messages, max_tokens=10, temperature=0)
    assert second.text and second.prompt_tokens > 10
    computed = storyteller.stats().since(before).prompt_tokens
    assert 0 < computed <= second.prompt_tokens


def test_how_many_tokens_are_new_is_known_before_they_are_computed(
    storyteller: edge.Model,
) -> None:
    story = storyteller.generate("Once upon a time", max_tokens=10, temperature=0).text
    for text in (f"Once upon a time{story} Then", f"Once upon a time{story}", "There was a dog"):
        going_on = storyteller.generate(text, max_tokens=2, temperature=0)
        new_tokens = going_on.new_tokens
        assert going_on.text and going_on.stats is not None
        assert going_on.stats.prompt_tokens == new_tokens < 20


def test_without_a_template_chat_says_so(random_model: edge.Model) -> None:
    with pytest.raises(edge.PromptError, match="no chat template"):
        random_model.chat([{"role": "user", "content": "Hi"}])


# ---------------------------------------------------------------------- limits
def test_a_full_context_ends_the_text(known_answer_model: Path) -> None:
    with edge.load(known_answer_model, ram="1GiB", ctx=32, threads=1) as model:
        story = model.generate("Once", temperature=0)
        assert story.text and story.finish_reason == "context"
        assert story.prompt_tokens + len(story.tokens) == 33  # the last one is never fed back
        with pytest.raises(edge.ContextError, match=r"40 tokens, the context holds 32.*--ctx"):
            model.generate([5] * 40).text  # noqa: B018


def test_no_tokens_wanted(storyteller: edge.Model) -> None:
    nothing = storyteller.generate("Once", max_tokens=0)
    assert nothing.text == "" and nothing.finish_reason == "length"


@pytest.mark.parametrize(
    ("prompt", "settings", "message"),
    [
        ([5, 512], {}, "token id 512 is not in the vocabulary: give 0 to 511"),
        ([], {}, "the prompt is empty"),
        ("word", {}, "has no vocabulary"),
        ([1.5], {}, "give text or whole token ids"),
        (5, {}, "give text or whole token ids"),
        ([5], {"temperature": -1}, "temperature is -1"),
        ([5], {"tempersture": 1}, 'no setting is called "tempersture": give one of temperature, '),
        ([5], {"max_tokens": -1}, "max_tokens is -1"),
        ([5], {"max_tokens": 1.5}, "max_tokens is 1.5: give a whole number"),
        ([5], {"sampling": 3}, "sampling is 3: give a Sampling"),
    ],
)
def test_what_cannot_be_asked(
    prompt: Any, settings: dict[str, Any], message: str, random_model: edge.Model
) -> None:
    with pytest.raises(edge.PromptError, match=message):
        random_model.generate(prompt, **settings)
    assert random_model.generate([5], max_tokens=2).text


def test_arguments_of_another_kind_are_named(random_model: edge.Model) -> None:
    model: Any = random_model
    for ask, message in (
        (lambda: edge.load(cast(Any, 3)), "the model is 3: give the path of a GGUF file"),
        (lambda: edge.load(model.plan, options=cast(Any, 3)), "options is 3: give LoadOptions"),
        (lambda: edge.LoadOptions(cache_dir=cast(Any, 3)), "cache_dir is 3: give the path"),
        (lambda: edge.LoadOptions(progress=cast(Any, 3)), "progress is 3: give a function"),
        (lambda: edge.LoadOptions(batch=cast(Any, "8")), "batch is '8': give a whole number"),
        (lambda: edge.LoadOptions(sequences=cast(Any, True)), "sequences is True: give a whole"),
        (lambda: edge.LoadOptions(warm_start=cast(Any, 1)), "warm_start is 1: give True or False"),
        (lambda: edge.LoadOptions(speculate=cast(Any, 3)), "speculate is 3: give auto, off"),
        (lambda: edge.LoadOptions(fidelity=cast(Any, 3)), "fidelity is 3: give the name of a mode"),
        (lambda: edge.LoadOptions(kv_type=cast(Any, 3)), "kv_type is 3: give one of f16"),
        (lambda: edge.LoadOptions(kv_disk=cast(Any, 1.5)), "kv_disk is 1.5: give a size"),
        (lambda: edge.load(model.plan, seed=cast(Any, "x")), "seed is 'x': give a whole number"),
        (lambda: model.generate(b"Once"), "the prompt is bytes, which could be text or token ids"),
        (lambda: model.rewind("a"), "num_tokens is 'a': give a whole number"),
        (lambda: model.logits([1, 2], 1.5), "prefill is 1.5: give a whole number"),
        (lambda: model.logits(3, 1), "the prompt is 3: give text or whole token ids"),
    ):
        with pytest.raises(edge.HaversackError, match=re.escape(message)):
            ask()


def test_half_a_surrogate_is_no_text(storyteller: edge.Model) -> None:
    with pytest.raises(edge.PromptError, match="no Unicode text"):
        storyteller.generate("\ud800")


# -------------------------------------------------------- cancelling and closing
def test_cancel_from_another_thread(random_model: edge.Model) -> None:
    generation = random_model.generate([1, 2, 3], max_tokens=250, temperature=0)
    expected = random_model.generate([1, 2, 3], max_tokens=9, temperature=0).text
    other = threading.Thread(target=generation.cancel)
    for number, _ in enumerate(generation):
        if number == 4:
            other.start()
            other.join()
    assert generation.finish_reason == "cancelled" and len(generation.tokens) < 250
    assert random_model.generate([1, 2, 3], max_tokens=9, temperature=0).text == expected


def test_cancel_during_the_prompt(random_model: edge.Model) -> None:
    generation = random_model.generate([7] * 200, max_tokens=1)
    timer = threading.Timer(0.005, generation.cancel)
    timer.start()
    assert list(generation) in ([], [generation.text])
    timer.join()
    random_model.check_integrity()
    assert random_model.generate([7] * 200, max_tokens=1).text


def test_a_generation_cancelled_before_it_starts_does_nothing(random_model: edge.Model) -> None:
    generation = random_model.generate([1], max_tokens=5)
    generation.cancel()
    assert list(generation) == [] and generation.finish_reason == "cancelled"


def test_a_dropped_generation_lets_go(random_model: edge.Model) -> None:
    gc.disable()  # it must not need the collector
    try:
        for _ in random_model.generate([1], max_tokens=5):
            break
    finally:
        gc.enable()
    assert random_model.generate([1], max_tokens=1).text


def test_threads_take_turns(random_model: edge.Model) -> None:
    prompts = [[i, i + 1] for i in range(6)]
    alone = [random_model.generate(p, max_tokens=6, temperature=0).text for p in prompts]
    together = [""] * len(prompts)

    def ask(number: int) -> None:
        prompt = prompts[number]
        together[number] = random_model.generate(prompt, max_tokens=6, temperature=0).text

    threads = [threading.Thread(target=ask, args=(i,)) for i in range(len(prompts))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert together == alone


def test_a_closed_model_says_so(tiny_model: Any, trunk_dir: Path) -> None:
    before = threading.active_count()
    planned = streamed(edge.plan(tiny_model("qwen3moe"), ram="1GiB", threads=1), 0.5)
    model = edge.load(planned, options=edge.LoadOptions(cache_dir=trunk_dir))
    unfinished = model.generate([1], max_tokens=5)
    next(unfinished)
    model.close()
    model.close()
    assert unfinished.finish_reason == "cancelled"
    with pytest.raises(edge.ClosedError, match="closed"):
        model.generate([1], max_tokens=5)
    with pytest.raises(edge.ClosedError, match="closed"):
        model.logits([1], prefill=1)
    assert threading.active_count() == before  # no reader is left behind


@pytest.fixture
def open_model(tiny_model: Any, trunk_dir: Path) -> edge.Model:
    planned = streamed(edge.plan(tiny_model("qwen3moe"), ram="1GiB", ctx=64, threads=1), 0.5)
    return edge.load(planned, options=edge.LoadOptions(cache_dir=trunk_dir))


def test_closing_ends_rows_that_nobody_takes(open_model: edge.Model) -> None:
    rows = open_model.iter_logits([1, 2, 3, 4], prefill=1)
    next(rows)
    open_model.close()
    assert list(rows) == []


def test_closing_ends_what_another_thread_left_unfinished(open_model: edge.Model) -> None:
    left: list[edge.Generation] = []

    def begin() -> None:
        left.append(open_model.generate([1], max_tokens=5))
        next(left[0])

    thread = threading.Thread(target=begin)
    thread.start()
    thread.join()
    open_model.close()
    assert left[0].finish_reason == "cancelled"


def test_closing_waits_for_a_call_that_runs(open_model: edge.Model) -> None:
    generation, started = open_model.generate([1], max_tokens=60), threading.Event()

    def run() -> None:
        for _ in generation:
            started.set()

    thread = threading.Thread(target=run)
    thread.start()
    assert started.wait(timeout=300)
    open_model.close()
    thread.join(timeout=300)
    assert not thread.is_alive() and generation.finish_reason in ("cancelled", "length")


def test_a_closed_model_has_no_vocabulary_any_more(known_answer_model: Path) -> None:
    model = edge.load(known_answer_model, ram="1GiB", threads=1)
    model.close()
    with pytest.raises(edge.ClosedError, match="closed"):
        model.tokenize("Once")
    with pytest.raises(edge.ClosedError, match="closed"):
        model.chat([{"role": "user", "content": "Once"}])


# ---------------------------------------------------------------------- faults
def test_a_file_cut_short_fails_the_call_only(tmp_path: Path, tiny_model: Any) -> None:
    path = tmp_path / "model.gguf"
    content = tiny_model("qwen3moe", shape=TinyShape(num_experts=16)).read_bytes()
    path.write_bytes(content)
    planned = streamed(edge.plan(path, ram="1GiB", ctx=256, threads=1), 0.0)
    with edge.load(planned, options=edge.LoadOptions(cache_dir=tmp_path)) as model:
        expected = model.logits(range(1, 30), prefill=20)
        with path.open("r+b") as file:
            file.truncate(4096)
        for _ in range(2):
            with pytest.raises(edge.StorageError, match=r"model\.gguf"):
                model.logits(range(1, 30), prefill=20)
            model.check_integrity()
        with path.open("r+b") as file:
            file.write(content)
        assert (model.logits(range(1, 30), prefill=20) == expected).all()


def test_a_damaged_trunk_is_noticed_and_written_anew(
    tmp_path: Path, tiny_model: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """A bit in the middle of a norm: without the check the text would be another one."""
    planned = streamed(edge.plan(tiny_model(), ram="1GiB", ctx=64, threads=1), 0.25)
    options = edge.LoadOptions(cache_dir=tmp_path, warm_start=False)

    def logits() -> Any:
        caplog.clear()
        with edge.load(planned, options=options) as model:
            return model.logits([1, 2, 3], prefill=2)

    expected = logits()
    (trunk,) = tmp_path.glob("*.gguf")
    with GgufHeader(trunk) as header:
        norm = next(t for t in header.tensors if t.name == "blk.1.attn_norm.weight")
    for place, damage in ((norm.offset + 3, b"\x3e"), (40, b"\xff" * 9), (0, b"")):
        with trunk.open("r+b") as file:
            file.seek(place)
            file.write(damage or bytes(norm.offset))
        assert (logits() == expected).all()
        (warning,) = [r for r in caplog.records if r.name == "haversack.model"]
        assert f"the trunk file {trunk} is damaged" in warning.getMessage()
        assert "written anew" in warning.getMessage()
        assert (logits() == expected).all()
        assert not [r for r in caplog.records if r.name == "haversack.model"]


def test_a_trunk_that_is_damaged_again_at_once(
    tmp_path: Path, tiny_model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    planned = streamed(edge.plan(tiny_model(), ram="1GiB", ctx=64, threads=1), 0.25)
    options = edge.LoadOptions(cache_dir=tmp_path, warm_start=False)
    edge.load(planned, options=options).close()
    (trunk,) = tmp_path.glob("*.gguf")
    trunk.write_bytes(trunk.read_bytes()[:-1])
    monkeypatch.setattr(
        "haversack.edge.loading.rewrite_trunk", lambda *_: trunk
    )  # a drive that lies
    with pytest.raises(edge.StorageError, match=r"is damaged: .*right after .*--cache-dir"):
        edge.load(planned, options=options)


@pytest.mark.skipif(sys.platform != "linux", reason="the system tells holes")
def test_numbers_that_are_not_finite_are_named_with_a_hole(
    tmp_path: Path, tiny_model: Any, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "model.gguf"
    data = bytearray(tiny_model("qwen3moe", expert_type="F32").read_bytes())
    with GgufHeader(tiny_model("qwen3moe", expert_type="F32")) as header:
        places = {tensor.name: tensor.offset for tensor in header.tensors}
    norm, hole = places["output_norm.weight"], places["blk.1.ffn_up_exps.weight"] // 4096 * 4096
    data[norm : norm + 4] = b"\xff\xff\xff\x7f"  # NaN
    with path.open("wb") as file:
        os.truncate(file.fileno(), len(data))
        os.pwrite(file.fileno(), data[:hole], 0)
        os.pwrite(file.fileno(), data[hole + 200_704 :], hole + 200_704)
    with edge.load(path, ram="1GiB", ctx=64, threads=1) as model:
        with pytest.raises(edge.ModelFileError, match=r"a hole of 19.* KiB, .*not finite"):
            _ = model.generate([1, 2], max_tokens=2, temperature=0).text
    assert any("has a hole" in record.getMessage() for record in caplog.records)


def test_a_removed_file_is_still_readable(tmp_path: Path, tiny_model: Any) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(tiny_model("qwen3moe").read_bytes())
    planned = streamed(edge.plan(path, ram="1GiB", ctx=64, threads=1), 0.0)
    with edge.load(planned, options=edge.LoadOptions(cache_dir=tmp_path)) as model:
        path.unlink()
        assert len(model.generate([1, 2], max_tokens=8).text.split()) == 8


@pytest.mark.parametrize("share", [0.0, 0.5])
def test_device_errors_fail_the_call_only(share: float, tiny_model: Any, trunk_dir: Path) -> None:
    """Every 37th read fails with EIO: calls raise or are right, and nothing is left broken."""
    path = tiny_model("qwen3moe", shape=TinyShape(num_experts=16))
    planned = streamed(edge.plan(path, ram="1GiB", ctx=128, threads=1), share)
    tokens = list(range(1, 40))
    counting = itertools.count(1)

    class FailingFile(DirectFile):
        fails = False

        def read_into(self, buffer: Buffer, offset: int, need_bytes: int) -> None:
            if self.fails and next(counting) % 37 == 0:
                raise edge.StorageError(5, f"{self.path}: input/output error")
            super().read_into(buffer, offset, need_bytes)

    options = edge.LoadOptions(cache_dir=trunk_dir, open_file=FailingFile)
    with edge.load(planned, options=options) as model:
        expected = model.logits(tokens, prefill=30)
        FailingFile.fails = True
        failures = 0
        for _ in range(12):
            try:
                assert (model.logits(tokens, prefill=30) == expected).all()
            except edge.StorageError:
                failures += 1
            model.check_integrity()
        assert failures > 0
        FailingFile.fails = False
        assert (model.logits(tokens, prefill=30) == expected).all()


@pytest.mark.parametrize(
    "use",
    [
        lambda model: model.generate([1], max_tokens=5),
        lambda model: model.chat([{"role": "user", "content": "Once"}]),
        lambda model: model.chat_template(),
        lambda model: model.tokenize([1, 2]),
        lambda model: model.logits([1], prefill=1),
        lambda model: model.iter_logits([1], prefill=1),
        lambda model: model.vocab_size,
        lambda model: model.watch_routing(None),
        lambda model: model.check_integrity(),
    ],
    ids="generate chat chat_template tokenize logits iter_logits vocab_size watch check".split(),
)
def test_a_closed_model_refuses_every_call(use: Any, open_model: edge.Model) -> None:
    open_model.close()
    with pytest.raises(edge.ClosedError, match="the model is closed: load it again"):
        use(open_model)


@pytest.mark.parametrize("mode", ["resident", "streamed"])
def test_the_figures_of_a_closed_model_are_its_last(
    mode: str, tiny_model: Any, trunk_dir: Path
) -> None:
    planned = edge.plan(tiny_model("qwen3moe"), ram="1GiB", ctx=64, threads=1)
    if mode == "streamed":
        planned = streamed(planned, 0.5)
    options = edge.LoadOptions(cache_dir=trunk_dir, warm_start=False)
    with edge.load(planned, options=options) as model:
        assert model.generate([1, 2, 3], max_tokens=8).text
        inside = model.stats()
    junk = [bytearray(1 << 16) for _ in range(200)]
    grows: dict[str, Any] = {"bytes_read": 0, "read_s": 0, "ram_peak_bytes": 0}
    assert replace(model.stats(), **grows) == replace(inside, **grows)
    assert model.stats() == model.stats()
    assert len(junk) == 200


# ----------------------------------------------------------------------- stats
@pytest.mark.skipif(sys.platform != "linux", reason="the kernel keeps the peak there")
def test_the_peak_is_what_was_held_inside_a_pass(
    random_model: edge.Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert random_model._engine is not None
    context = random_model._engine.context
    compute = context.compute

    held_bytes = list[int]()

    def with_a_large_temporary(rows: Any) -> None:
        compute(rows)
        temporary = np.ones(200 * 2**20, np.uint8)
        held_bytes.append(anonymous_bytes())
        del temporary

    monkeypatch.setattr(context, "compute", with_a_large_temporary)
    assert random_model.generate([2], max_tokens=3).text
    peak_bytes = random_model.stats().ram_peak_bytes
    assert peak_bytes >= max(held_bytes) - 2**20  # the kernel counts in batches
    assert anonymous_bytes() < peak_bytes - 150 * 2**20


def test_stats_count_what_happened(random_model: edge.Model) -> None:
    layers, used = 3, 2
    before = random_model.stats()
    generation = random_model.generate([1], max_tokens=11, temperature=0)
    assert generation.text
    spent = random_model.stats().since(before)
    assert (spent.prompt_tokens, spent.tokens) == (1, 10)
    assert spent.hits + spent.misses == (1 + 10) * layers * used
    expert_bytes = random_model.plan.geometry.layers[0].expert_bytes
    at_most = spent.misses + spent.prefetched
    assert spent.misses * expert_bytes <= spent.bytes_read <= at_most * expert_bytes
    assert 0 <= spent.prefetched_right <= spent.prefetched
    told = generation.stats
    assert told is not None and told.bytes_read <= spent.bytes_read  # a guess may still be coming
    grows = {name: getattr(spent, name) for name in ("bytes_read", "read_s", "ram_peak_bytes")}
    assert replace(told, **grows) == spent
    assert spent.ram_peak_bytes > 0 and spent.decode_tok_s > 0


def test_logits_refuse_an_impossible_prefill(random_model: edge.Model) -> None:
    for prefill in (0, 4):
        with pytest.raises(edge.PromptError, match=f"prefill is {prefill}: give 1 to 3"):
            random_model.logits([1, 2, 3], prefill=prefill)
    with pytest.raises(edge.PromptError, match="no tokens are given"):
        random_model.logits([], prefill=0)
