"""Speculation is lossless: whatever is drafted, text, tokens and last logits are those without."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from haversack import edge
from haversack.cache.ngram import Draft
from haversack.edge.call import Call
from haversack.edge.planner import streamed
from haversack.tools.models.architectures import TinyShape

TinyModel = Callable[..., Path]
SHAPE = TinyShape(num_experts=8)
PROMPT = [7, 30, 8, 31, 7, 30, 9]
TALE = "Once upon a time there was a fox. One day the fox met a"
TEXT_TOKENS, MOST = 24, 6
ARCHITECTURES = ["qwen3moe", "gpt-oss", "deepseek2"]


@pytest.fixture(params=[None, 0.0, 0.25], ids=["resident", "floor", "streamed"])
def share(request: pytest.FixtureRequest) -> float | None:
    """The share of the experts in slots, or None: all in memory."""
    given: float | None = request.param
    return given


def opened(path: Path, trunk_dir: Path, share: float | None = None, **options: Any) -> edge.Model:
    sequences = options.pop("sequences", 1)
    ctx = options.pop("ctx", 256)
    planned = edge.plan(path, "1GiB", ctx=ctx, threads=2, batch=64, sequences=sequences)
    planned = planned if share is None else streamed(planned, share)
    chosen = edge.LoadOptions(cache_dir=trunk_dir, warm_start=False, **options)
    return edge.load(planned, options=chosen)


Wrong = Callable[[int, int], bool]


class Script:
    """Drafts the tokens of a known text. `wrong` is told the place of each in the text and in the
    draft: whether another one is drafted there."""

    def __init__(self, text: Sequence[int], wrong: Wrong) -> None:
        self._text, self._wrong = text, wrong

    def propose(self, text: Sequence[int], most: int) -> Draft:
        first = len(text)
        tokens = [
            (token + 1) % 64 if self._wrong(first + idx, idx) else token
            for idx, token in enumerate(self._text[first : first + most])
        ]
        return Draft(tokens, [0.9] * len(tokens))


def outcome(model: edge.Model, generation: edge.Generation) -> tuple[Any, ...]:
    """What a generation gave and left behind, and the logits after its last token."""
    text, tokens = generation.text, generation.tokens
    held = list(model._loop.latest.tokens)
    model.check_integrity()
    logits = model.verify(tokens[-1:]).tobytes() if tokens else b""
    return text, tokens, generation.finish_reason, held, logits


def draft(model: edge.Model, script: Script) -> None:
    """Have all calls of the model draft as `script` says."""
    speculation: Any = model._loop.speculation

    def drafted(call: Call, most: int) -> Draft:
        most = min(most, call.most_drafted)
        return script.propose(call.tokens, most) if most > 0 else Draft((), ())

    speculation._draft = drafted


WRONG: dict[str, Wrong] = {
    "none": lambda place, idx: False,
    "all": lambda place, idx: True,
    "every other one": lambda place, idx: place % 2 == 0,
    **{str(number): lambda place, idx, number=number: idx == number for number in range(MOST)},
}


@pytest.fixture(params=[*ARCHITECTURES, "builtin"])
def path(request: pytest.FixtureRequest, tiny_model: TinyModel) -> Path:
    if request.param == "builtin":
        return edge.builtin_model()
    return tiny_model(request.param, shape=SHAPE)


# ------------------------------------------------------------------- lossless
def check_lossless(path: Path, trunk_dir: Path, share: float | None, **settings: Any) -> None:
    """Generate without drafts, with those of the text itself, and with each script."""

    prompt = PROMPT

    def generated(model: edge.Model) -> tuple[Any, ...]:
        model.logits([5], 1)  # so that nothing of an earlier prompt is found
        return outcome(model, model.generate(prompt, TEXT_TOKENS, **settings))

    with opened(path, trunk_dir, share, speculate="off") as model:
        if path == edge.builtin_model():
            prompt = model.tokenize(TALE)
        expected = generated(model)
    with opened(path, trunk_dir, share, speculate="ngram") as model:
        assert generated(model) == expected
        for name, wrong in WRONG.items():
            draft(model, Script([*prompt, *expected[1]], wrong))
            before = model.stats()
            assert generated(model) == expected, name
            spent = model.stats().since(before)
            assert (spent.draft_accepted < spent.drafted) == (name != "none")
            assert (spent.draft_accepted > 0) == (name not in ("all", "0"))
            assert not spent.draft_extra_reads or share is not None


def test_text_and_logits_are_those_without_drafts(
    share: float | None, path: Path, trunk_dir: Path
) -> None:
    check_lossless(path, trunk_dir, share, temperature=0)


def test_sampled_text_and_logits_are_those_without_drafts(
    share: float | None, tiny_model: TinyModel, trunk_dir: Path
) -> None:
    tiny = tiny_model(shape=SHAPE)
    check_lossless(tiny, trunk_dir, share, seed=5, repeat_penalty=1.2)


@pytest.mark.parametrize("length", range(1, MOST + 1))
def test_drafts_of_any_length_are_lossless(
    length: int, tiny_model: TinyModel, trunk_dir: Path
) -> None:
    tiny = tiny_model(shape=SHAPE)
    with opened(tiny, trunk_dir, 0.25, speculate="off") as model:
        expected = outcome(model, model.generate(PROMPT, TEXT_TOKENS, temperature=0))
    with opened(tiny, trunk_dir, 0.25, speculate=f"ngram:{length}") as model:
        draft(model, Script([*PROMPT, *expected[1]], WRONG["none"]))
        assert outcome(model, model.generate(PROMPT, TEXT_TOKENS, temperature=0)) == expected
        stats = model.stats()
        assert stats.draft_accepted == stats.drafted == stats.draft_rows - stats.draft_rounds
        assert stats.draft_rounds <= -(-TEXT_TOKENS // (length + 1))


# ----------------------------------------------------------- ends inside a draft
@pytest.fixture(scope="module")
def tale() -> Iterator[tuple[edge.Model, edge.Model]]:
    """The built-in model without drafts, and with."""
    path = edge.builtin_model()
    with (
        edge.load(path, "2GiB", ctx=256, options=edge.LoadOptions(speculate="off")) as plain,
        edge.load(path, "2GiB", ctx=256, options=edge.LoadOptions(speculate="ngram")) as drafting,
    ):
        yield plain, drafting


def both(
    tale: tuple[edge.Model, edge.Model], prompt: str | list[int], **settings: Any
) -> tuple[edge.Generation, tuple[Any, ...], tuple[Any, ...]]:
    """A generation without drafts, what it left, and what is left where all that may be drafted is
    drafted, and more than there is of the text."""
    plain, drafting = tale
    generation = plain.generate(prompt, **settings)
    left = outcome(plain, generation)
    given = plain.tokenize(prompt)
    draft(drafting, Script([*given, *generation.tokens, *range(20, 40)], WRONG["none"]))
    before = drafting.stats()
    found = outcome(drafting, drafting.generate(prompt, **settings))
    assert drafting.stats().since(before).drafted or len(generation.tokens) < 3
    return generation, left, found


def test_the_model_ends_inside_a_draft(tale: tuple[edge.Model, edge.Model]) -> None:
    def ends(seed: int) -> bool:
        generation = tale[0].generate(TALE, seed=seed)
        return bool(generation.text) and generation.finish_reason == "stop"

    generation, expected, found = both(tale, TALE, seed=next(filter(ends, range(50))))
    assert generation.finish_reason == "stop" and found == expected


@pytest.mark.parametrize("length", [7, 12, 15])
def test_a_stop_string_comes_inside_a_draft(
    length: int, tale: tuple[edge.Model, edge.Model]
) -> None:
    text = tale[0].generate(TALE, 40, temperature=0).text
    stop = text[3 * length : 3 * length + 4]
    generation, expected, found = both(tale, TALE, temperature=0, stop=(stop,))
    assert generation.finish_reason == "stop" and found == expected


@pytest.mark.parametrize("number", [1, 2, 5, 9])
def test_the_limit_comes_inside_a_draft(number: int, tale: tuple[edge.Model, edge.Model]) -> None:
    generation, expected, found = both(tale, TALE, max_tokens=number, temperature=0)
    assert generation.finish_reason == "length" and found == expected


@pytest.mark.parametrize("room", [1, 2, 3, 8])
def test_the_context_is_full_inside_a_draft(room: int, tale: tuple[edge.Model, edge.Model]) -> None:
    plain, drafting = tale
    prompt = [10 + number % 50 for number in range(256 - room)]
    generation = plain.generate(prompt, temperature=0)
    expected = generation.text, generation.tokens, plain._loop.latest.tokens
    draft(drafting, Script([*prompt, *generation.tokens, 7, 7, 7], WRONG["none"]))
    again = drafting.generate(prompt, temperature=0)
    assert (again.text, again.tokens, drafting._loop.latest.tokens) == expected
    assert generation.finish_reason == again.finish_reason
    drafting.check_integrity()


def test_a_grammar_is_followed(tale: tuple[edge.Model, edge.Model]) -> None:
    schema = '{"type": "object", "properties": {"name": {"enum": ["fox", "hen"]}, "age": {"type":'
    schema += ' "integer"}}, "required": ["name", "age"]}'
    _, expected, found = both(tale, TALE, max_tokens=40, temperature=0, json_schema=schema)
    assert found == expected


@pytest.mark.parametrize("seed", range(4))
def test_sampled_text_is_that_of_the_seed(seed: int, tale: tuple[edge.Model, edge.Model]) -> None:
    _, expected, found = both(tale, TALE, max_tokens=60, seed=seed)
    assert found == expected


def test_a_generation_is_cancelled_inside_a_draft(tale: tuple[edge.Model, edge.Model]) -> None:
    plain, drafting = tale
    expected = plain.generate(TALE, 20, temperature=0)
    assert expected.text
    script = Script([*plain.tokenize(TALE), *expected.tokens], WRONG["none"])
    draft(drafting, script)
    generation = drafting.generate(TALE, 20, temperature=0)
    pieces = [next(generation), next(generation)]
    generation.cancel()
    assert not list(generation) and generation.finish_reason == "cancelled"
    assert expected.text.startswith("".join(pieces))
    held = [*plain.tokenize(TALE), *generation.tokens[:-1]]
    assert drafting._loop.latest.tokens == held
    drafting.check_integrity()
    assert drafting.generate(TALE, 20, temperature=0).text == expected.text


# ------------------------------------------------------------------ several texts
@pytest.mark.parametrize("sequences", [2, 4])
def test_texts_with_drafts_of_their_own_share_passes(
    sequences: int, share: float | None, tiny_model: TinyModel, trunk_dir: Path
) -> None:
    """Their drafts are right up to different places."""
    tiny = tiny_model(shape=SHAPE)
    prompts = [[number, *PROMPT] for number in range(sequences)]
    with opened(tiny, trunk_dir, share, speculate="off") as alone:
        expected = [outcome(alone, alone.generate(each, 24, temperature=0)) for each in prompts]
    scripts = {
        prompt[0]: Script([*prompt, *left[1]], lambda place, _, n=prompt[0]: place % (n + 2) == 0)
        for prompt, left in zip(prompts, expected, strict=True)
    }
    with opened(tiny, trunk_dir, share, speculate="ngram", sequences=sequences) as model:
        speculation: Any = model._loop.speculation

        def drafted(call: Call, most: int) -> Draft:
            most = min(most, call.most_drafted)
            script = scripts[call.tokens[0]]
            return script.propose(call.tokens, most) if most > 0 else Draft((), ())

        speculation._draft = drafted
        begun = [model.generate(prompt, 24, temperature=0) for prompt in prompts]
        while any(each.finish_reason is None for each in begun):
            for each in begun:
                next(each, "")
            model.check_integrity()
        assert [(each.text, each.tokens) for each in begun] == [left[:2] for left in expected]
        stats = model.stats()
        assert 0 < stats.draft_accepted < stats.drafted
        assert stats.draft_rows <= 7 * stats.draft_rounds


# ------------------------------------------------------------------- when it is off
@pytest.mark.parametrize("architecture", ["qwen35moe", "lfm2moe"])
def test_a_recurrent_model_says_why_it_does_not_draft(
    architecture: str, tiny_model: TinyModel, trunk_dir: Path
) -> None:
    with opened(tiny_model(architecture), trunk_dir, speculate="ngram") as model:
        assert model.generate(PROMPT * 4, 8, temperature=0).text
        assert model.stats().draft_rounds == 0
        assert "recurrent layers" in model.stats().not_drafting


def test_nothing_is_drafted_while_routing_is_watched(
    tiny_model: TinyModel, trunk_dir: Path
) -> None:
    """A watcher sees the tokens of the text alone, each once."""
    seen: list[int] = []
    with opened(tiny_model(shape=SHAPE), trunk_dir, 0.25, speculate="ngram") as model:
        model.watch_routing(lambda _, ids, __: seen.append(len(ids)))
        assert model.generate(PROMPT, TEXT_TOKENS, temperature=0).text
        assert set(seen) == {len(PROMPT), 1}
        assert model.stats().not_drafting == "routing is watched"
        model.watch_routing(None)
        assert model.generate(PROMPT, TEXT_TOKENS, temperature=0).text
        assert model.stats().draft_rounds


def test_how_tokens_are_drafted_can_be_changed(tiny_model: TinyModel, trunk_dir: Path) -> None:
    """The penalty makes it repeat the prompt's only token, so that a draft is found."""
    settings: dict[str, Any] = {"temperature": 0, "presence_penalty": -100}
    with opened(tiny_model(shape=SHAPE), trunk_dir, speculate="ngram") as model:
        text = model.generate([7], TEXT_TOKENS, None, **settings).text
        rounds = model.stats().draft_rounds
        for how in ("off", "ngram:2"):
            model.speculate(how)
            assert model.generate([7], TEXT_TOKENS, None, **settings).text == text
            assert (model.stats().draft_rounds > rounds) == (how == "ngram:2")
        passes = model.pass_counts()
        assert passes[3].number and passes[7].number and passes[1].taken_s > 0
        with pytest.raises(edge.PromptError, match="speculate is 'on'"):
            model.speculate("on")


@pytest.mark.parametrize("value", ["draft.bin", "draft.gguf:7", "ngram:0", "ngram:7", "yes", 3])
def test_what_is_not_known_is_refused(value: Any) -> None:
    with pytest.raises(edge.PromptError, match="give auto, off, ngram, ngram:N"):
        edge.LoadOptions(speculate=value)


# ------------------------------------------------------------------ from run to run
def test_what_was_said_is_known_in_the_next_run(tiny_model: TinyModel, tmp_path: Path) -> None:
    """Of the same model only."""
    tiny, other = tiny_model(shape=SHAPE), tiny_model(shape=SHAPE, seed=1)
    options = edge.LoadOptions(cache_dir=tmp_path, speculate="ngram")
    accepted: list[int] = []
    for path in (tiny, tiny, other):
        with edge.load(path, "1GiB", ctx=256, threads=1, options=options) as model:
            assert model.generate(PROMPT, TEXT_TOKENS, temperature=0).text
            accepted.append(model.stats().draft_accepted)
    assert accepted[1] > accepted[0] and accepted[1] > accepted[2]
    assert len(list(tmp_path.glob("*.ngrams"))) == 2


def test_drafts_are_part_of_the_plan(tiny_model: TinyModel, trunk_dir: Path) -> None:
    with opened(tiny_model(shape=SHAPE), trunk_dir) as model:
        drafts = next(entry for entry in model.budget() if entry.name == "drafts")
        assert drafts.reserved_bytes == model.plan.draft_bytes > 1 << 20
    assert edge.plan(tiny_model("lfm2moe"), "1GiB").draft_bytes == 0
