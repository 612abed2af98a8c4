"""A model that drafts: the text is the same with any of them, and its errors cost no text."""

import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from errno import EIO
from pathlib import Path
from typing import Any

import pytest

from haversack import edge
from haversack.edge.draft_model import DraftModel
from haversack.edge.planner import streamed, with_drafts
from haversack.tools.models.architectures import TinyShape

TinyModel = Callable[..., Path]
MODELS = Path(__file__).parents[1] / "data" / "models"
TWIN, OTHER = MODELS / "tales-twin.gguf", MODELS / "tales-draft.gguf"  # OTHER: its own vocabulary
SHAPE = TinyShape(num_experts=8)
PROMPT = [7, 30, 8, 31, 7, 30, 9]
TALE = "Once upon a time there was a fox. One day the fox met a"


def opened(
    path: Path, trunk_dir: Path, speculate: str, share: float | None = None, sequences: int = 1
) -> edge.Model:
    planned = edge.plan(path, "1GiB", ctx=256, threads=1, batch=64, sequences=sequences)
    planned = planned if share is None else streamed(planned, share)
    options = edge.LoadOptions(cache_dir=trunk_dir, warm_start=False, speculate=speculate)
    return edge.load(planned, options=options)


def outcome(model: edge.Model, generation: edge.Generation) -> tuple[Any, ...]:
    """What a generation gave and left behind, and the logits after its last token."""
    text, tokens = generation.text, generation.tokens
    held = list(model._loop.latest.tokens)
    model.check_integrity()
    logits = model.verify(tokens[-1:]).tobytes() if len(held) < 256 else b""
    return text, tokens, generation.finish_reason, held, logits


@pytest.mark.parametrize("share", [None, 0.0, 0.25], ids=["resident", "floor", "streamed"])
@pytest.mark.parametrize("settings", [{"temperature": 0}, {"seed": 5, "repeat_penalty": 1.2}])
def test_text_and_logits_are_those_without_drafts(
    share: float | None, settings: dict[str, Any], tiny_model: TinyModel, trunk_dir: Path
) -> None:
    """All drafts of the model itself come true where the likeliest token is taken, and few of
    another's."""
    tiny, other = tiny_model(shape=SHAPE), tiny_model(shape=SHAPE, seed=3)
    with opened(tiny, trunk_dir, "off", share) as model:
        expected = outcome(model, model.generate(PROMPT, 24, **settings))
    for draft_from in (tiny, other):
        with opened(tiny, trunk_dir, f"{draft_from}:6", share) as model:
            assert outcome(model, model.generate(PROMPT, 24, **settings)) == expected
            stats = model.stats()
            assert stats.drafted > 0
            if settings == {"temperature": 0}:
                assert (stats.draft_accepted == stats.drafted) == (draft_from == tiny)


@pytest.mark.parametrize("place", [0, 1, 3, 5, None])
def test_a_draft_is_wrong_at_any_place(
    place: int | None, tiny_model: TinyModel, trunk_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """None: at every other one of the text. The drafter takes wrong tokens back as well."""
    tiny = tiny_model(shape=SHAPE)
    with opened(tiny, trunk_dir, "off") as model:
        expected = outcome(model, model.generate(PROMPT, 24, temperature=0))
    truly, begun = DraftModel.next_token, [0]

    def falsified(self: DraftModel, sequence: int, tokens: Sequence[int]) -> tuple[int, float]:
        token, probability = truly(self, sequence, tokens)
        known = [*PROMPT, *expected[1]]
        if list(tokens) == known[: len(tokens)]:
            begun[0] = len(tokens) if len(tokens) > begun[0] + 6 or not begun[0] else begun[0]
        is_wrong = len(tokens) % 2 == 0 if place is None else len(tokens) - begun[0] == place
        return ((token + 1) % 64 if is_wrong else token), probability

    with opened(tiny, trunk_dir, f"{tiny}:6") as model:
        monkeypatch.setattr(DraftModel, "next_token", falsified)
        assert outcome(model, model.generate(PROMPT, 24, temperature=0)) == expected
        assert 0 <= model.stats().draft_accepted < model.stats().drafted


SETTINGS: dict[str, dict[str, Any]] = {
    "greedy": {"max_tokens": 30, "temperature": 0},
    "seed": {"max_tokens": 30, "seed": 4},
    "limit": {"max_tokens": 5, "temperature": 0},
    "full": {"temperature": 0},
    "grammar": {
        "max_tokens": 20,
        "temperature": 0,
        "json_schema": '{"type": "object", "properties": {"name": {"enum": ["fox", "hen"]}}}',
    },
}


def test_any_vocabulary_drafts_and_the_text_is_the_same(trunk_dir: Path) -> None:
    path = edge.builtin_model()
    prompts = {"full": [10 + number % 50 for number in range(250)]}
    several = dict(SETTINGS)

    def texts(model: edge.Model) -> dict[str, Any]:
        return {
            name: outcome(model, model.generate(prompts.get(name, TALE), **settings))
            for name, settings in several.items()
        }

    with opened(path, trunk_dir, "off") as model:

        def ends(seed: int) -> bool:
            generation = model.generate(TALE, seed=seed)
            return bool(generation.text) and generation.finish_reason == "stop"

        several["end"] = {"seed": next(filter(ends, range(50)))}
        text = model.generate(TALE, **SETTINGS["greedy"]).text
        several["stop"] = SETTINGS["greedy"] | {"stop": (text[40:44],)}
        expected = texts(model)
    reasons = {name: left[2] for name, left in expected.items()}
    assert [reasons[name] for name in ("end", "stop", "full", "limit")] == [
        "stop",
        "stop",
        "context",
        "length",
    ]
    for draft_from, share in ((TWIN, 0.25), (OTHER, None)):
        with opened(path, trunk_dir, f"{draft_from}:4", share) as model:
            assert texts(model) == expected
            assert 0 < model.stats().draft_accepted < model.stats().drafted
            model.speculate(str(draft_from))  # the gate decides
            assert texts(model) == expected


def test_several_texts_are_drafted(trunk_dir: Path) -> None:
    path, prompts = edge.builtin_model(), [TALE, "The old king said to his", "A hen and"]
    with opened(path, trunk_dir, "off") as model:
        expected = [model.generate(prompt, 24, temperature=0).text for prompt in prompts]
    with opened(path, trunk_dir, f"{TWIN}:3", sequences=3) as model:
        begun = [model.generate(prompt, 24, temperature=0) for prompt in prompts]
        while any(each.finish_reason is None for each in begun):
            for each in begun:
                next(each, "")
            model.check_integrity()
        assert [each.text for each in begun] == expected
        assert model.stats().draft_accepted > 0


def test_a_chat_goes_on_from_what_the_drafter_has_read(trunk_dir: Path) -> None:
    path = edge.builtin_model()
    with opened(path, trunk_dir, "off") as plain, opened(path, trunk_dir, f"{OTHER}:4") as drafting:
        prompt = TALE
        for _ in range(3):
            text = plain.generate(prompt, 12, temperature=0).text
            assert drafting.generate(prompt, 12, temperature=0).text == text
            prompt += text + " And then"


@pytest.mark.parametrize("error", [OSError(EIO, "the drive fails"), MemoryError("no memory")])
def test_an_error_of_the_drafter_costs_no_text(
    error: BaseException, trunk_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = edge.builtin_model()
    with opened(path, trunk_dir, "off") as model:
        expected = outcome(model, model.generate(TALE, 24, temperature=0))
    with opened(path, trunk_dir, f"{TWIN}:4") as model:
        helper: Any = model._loop.speculation._helper
        truly, num_calls = helper.model._context.compute, [0]

        def failing(rows: Any) -> None:
            num_calls[0] += 1
            if num_calls[0] > 3:
                raise error
            truly(rows)

        monkeypatch.setattr(helper.model._context, "compute", failing)
        assert outcome(model, model.generate(TALE, 24, temperature=0)) == expected
        assert "tales-twin.gguf cannot draft" in model.stats().not_drafting


def test_what_was_learnt_of_vocabularies_is_known_in_the_next_run(tmp_path: Path) -> None:
    options = edge.LoadOptions(cache_dir=tmp_path, speculate=f"{OTHER}:4")
    known: list[int] = []
    for prompt in ("There was a poor woodcutter in the neighbourhood. He was astonished.", "A"):
        with edge.load(edge.builtin_model(), "1GiB", ctx=256, threads=1, options=options) as model:
            speculation: Any = model._loop.speculation
            known.append(len(speculation._helper.vocabularies.pairs))
            assert model.generate(prompt, 8, temperature=0).tokens is not None
            assert model.generate(prompt, 8, temperature=0).text is not None
    assert known[0] == 0 < known[1]


# ------------------------------------------------------------------------ memory
def test_a_drafter_is_part_of_the_plan(trunk_dir: Path) -> None:
    path = edge.builtin_model()
    with opened(path, trunk_dir, str(TWIN)) as model:
        planned, entries = model.plan, {entry.name: entry for entry in model.budget()}
        assert planned.drafter is not None and planned.drafter_bytes == planned.drafter.num_bytes
        for name, num_bytes in planned.drafter.parts().items():
            assert entries[name].reserved_bytes == num_bytes
        assert sum(entry.reserved_bytes for entry in entries.values()) == planned.ram_bytes
        assert planned.to_dict()["drafter"]["model"] == str(TWIN)
        assert "drafter" in str(planned)


def test_with_a_drafter_a_process_stays_inside_its_plan() -> None:
    command = [sys.executable, "-m", "haversack.edge", "run", "--ram", "1GiB", "--speculate"]
    found = subprocess.run(
        [*command, str(TWIN), "-p", TALE, "-n", "24", "--temp", "0", "--json"],
        capture_output=True,
        check=True,
        timeout=300,
    )
    spent = json.loads(found.stdout)
    assert spent["tokens"] == 24 and spent["ram_peak_bytes"] <= spent["ram_planned_bytes"]


def test_a_drafter_takes_room_from_experts(trunk_dir: Path) -> None:
    path = edge.builtin_model()
    floor_bytes = edge.plan(path, "1GiB", ctx=256, threads=1, batch=64).floor_bytes
    plain = edge.plan(path, floor_bytes + (24 << 20), ctx=256, threads=1, batch=64)
    drafting, off = with_drafts(plain, OTHER), with_drafts(plain, None, is_off=True)
    assert off.draft_bytes == 0 < plain.draft_bytes
    assert drafting.slot_bytes <= plain.slot_bytes or drafting.mode != plain.mode
    for planned in (plain, drafting, off):
        assert planned.planned_bytes <= planned.ram_bytes
        planned.budget().check_integrity()


def test_a_drafter_holds_whole_texts_only_where_all_experts_are_in_memory() -> None:
    path = edge.builtin_model()
    rich = with_drafts(edge.plan(path, "1GiB", threads=1), OTHER)
    assert rich.drafter is not None and rich.drafter.shape.ctx_tokens == rich.shape.ctx_tokens
    plain = edge.plan(path, "1GiB", ctx=2048, threads=1)
    tight = with_drafts(edge.plan(path, plain.full_bytes, ctx=2048, threads=1), OTHER)
    assert tight.mode == "streamed" and tight.drafter is not None
    assert tight.drafter.shape.ctx_tokens == min(512, rich.drafter.shape.ctx_tokens)


def test_a_drafter_without_room_is_refused_with_numbers() -> None:
    path = edge.builtin_model()
    floor = edge.plan(path, "1GiB", ctx=256, threads=1, batch=64).floor_bytes
    planned = edge.plan(path, floor, ctx=256, threads=1, batch=64)
    with pytest.raises(edge.BudgetError, match=r"the drafter tales-twin.gguf takes .* \(weights"):
        with_drafts(planned, TWIN)


def test_a_model_that_cannot_draft_is_refused(tiny_model: TinyModel, trunk_dir: Path) -> None:
    planned = edge.plan(edge.builtin_model(), "1GiB", ctx=256)
    with pytest.raises(edge.ModelFileError, match="recurrent layers"):
        with_drafts(planned, tiny_model("lfm2moe"))
    with pytest.raises(edge.ModelFileError, match="cannot be compared"):
        opened(edge.builtin_model(), trunk_dir, str(tiny_model(shape=SHAPE)))
    with (
        opened(edge.builtin_model(), trunk_dir, "auto") as model,
        pytest.raises(edge.PromptError, match="was not loaded"),
    ):
        model.speculate(str(TWIN))


def test_what_was_loaded_to_draft_nothing_has_no_memory_for_it() -> None:
    options = edge.LoadOptions(speculate="off", warm_start=False)
    with edge.load(edge.builtin_model(), "1GiB", ctx=256, threads=1, options=options) as model:
        assert model.plan.draft_bytes == 0
        model.speculate("off")
        with pytest.raises(edge.PromptError, match="no memory is set aside"):
            model.speculate("ngram")
