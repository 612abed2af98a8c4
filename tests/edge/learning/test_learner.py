"""A drafter that learns while it drafts: the text is the same, and errors of the learner end
learning alone."""

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from haversack import edge
from haversack.edge.learning import learner_plan, opening
from haversack.edge.learning.adapter_file import write_adapter
from haversack.edge.learning.decoder_file import read_decoder
from haversack.edge.learning.learner import Learner
from haversack.edge.planner import with_drafts
from haversack.edge.speculate import asked_for

MODELS = Path(__file__).parents[2] / "data" / "models"
OTHER = MODELS / "tales-draft.gguf"
PROMPTS = ["Once upon a time there was a", "The old king said to his"]
LONG_S = 600.0  # for what ends long before


@pytest.fixture(autouse=True)
def in_haste(monkeypatch: pytest.MonkeyPatch) -> None:
    """Learners have a core of their own."""
    monkeypatch.setattr(opening, "_SHARE", 1.0)
    monkeypatch.setattr(opening, "_NICENESS", 0)


def opened(speculate: str, folder: Path, warm_start: bool = True) -> edge.Model:
    options = edge.LoadOptions(cache_dir=folder, warm_start=warm_start, speculate=speculate)
    return edge.load(edge.builtin_model(), "2GiB", ctx=256, threads=1, options=options)


def texts(model: edge.Model) -> list[Any]:
    found, both = list[Any](), list[dict[str, Any]]([{"temperature": 0}, {"seed": 3}])
    for prompt in PROMPTS:
        for settings in both:
            generation = model.generate(prompt, 40, **settings)
            text = generation.text, generation.tokens
            found.append((text, model.verify(generation.tokens[-1:]).tobytes()))
        model.check_integrity()
    return found


def learner_of(model: edge.Model) -> Learner:
    learner = model._loop.speculation.learner
    assert learner is not None
    return learner


def wait_until(learner: Learner, reached: Callable[[], object]) -> None:
    with learner.changed:
        assert learner.changed.wait_for(lambda: reached() or learner.why_not, LONG_S)


def test_what_is_asked_for() -> None:
    assert asked_for("a.gguf+learn")[:3] == (None, Path("a.gguf"), True)
    assert asked_for("a.gguf+learn:3")[:3] == (3, Path("a.gguf"), True)
    assert asked_for("a.gguf:3")[:3] == (3, Path("a.gguf"), False)
    for value in ("auto+learn", "ngram+learn", "a.gguf+learn:9", "a.gguf:3+learn"):
        with pytest.raises(edge.PromptError, match="give auto, off, ngram"):
            asked_for(value)


def test_text_is_that_without(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    with opened("off", tmp_path) as model:
        expected = texts(model)
    with opened(f"{OTHER}+learn:4", tmp_path) as model:
        learner = learner_of(model)
        while not learner.why_not and learner.progress.right_after < 0:
            done = learner.progress.num_steps
            assert texts(model) == expected
            wait_until(learner, lambda done=done: learner.progress.num_steps > done)
        assert not learner.why_not
        assert texts(model) == expected  # with what was learnt by now
        stats = model.stats()
        assert stats.draft_steps >= 4 and stats.draft_accepted and not stats.not_learning
        assert 0 <= stats.draft_right_before <= 1 and 0 <= stats.draft_right_after <= 1


def test_what_was_learnt_earlier_is_used_unless_it_is_damaged(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    from haversack.edge.learning.decoder import AdaptedDecoder

    with opened("off", tmp_path) as model:
        expected = texts(model)
    with opened(f"{OTHER}+learn:4", tmp_path) as model:
        task = learner_of(model)._task
    decoder = read_decoder(OTHER)
    changes = {name: values + 0.01 for name, values in AdaptedDecoder(decoder).changes().items()}
    write_adapter(task.adapter, decoder.architecture, task.pair, changes)
    for is_damaged in (False, True):
        if is_damaged:
            task.adapter.write_bytes(task.adapter.read_bytes()[:-1])
        with opened(f"{OTHER}+learn:4", tmp_path) as model:
            helper: Any = model._loop.speculation._helper
            assert bool(helper.model._adapter._adapter) is not is_damaged
            assert texts(model) == expected


def test_a_learner_that_is_killed_ends_learning_alone(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    with opened("off", tmp_path, warm_start=False) as model:
        expected = texts(model)
    with opened(f"{OTHER}+learn:4", tmp_path, warm_start=False) as model:
        assert texts(model) == expected
        learner = learner_of(model)
        assert learner._process is not None
        wait_until(learner, lambda: learner.progress.num_steps)
        os.kill(learner._process.pid, signal.SIGINT)  # as Ctrl-C in a terminal does
        done = learner.progress.num_steps
        assert texts(model) == expected
        wait_until(learner, lambda: learner.progress.num_steps > done)
        assert not learner.why_not
        os.kill(learner._process.pid, signal.SIGKILL if hasattr(signal, "SIGKILL") else 15)
        wait_until(learner, lambda: False)
        assert texts(model) == expected
        assert "ended with status" in model.stats().not_learning
        assert not model.stats().not_drafting
    assert not list(tmp_path.glob("*.adapter"))


def test_an_error_of_the_learner_is_told_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("torch")
    monkeypatch.setattr("haversack.edge.learning.opening.process_bytes", lambda _: 1 << 20)
    with opened(f"{OTHER}+learn", tmp_path) as model:
        texts(model)
        wait_until(learner_of(model), lambda: False)
        assert "learning took" in model.stats().not_learning
        assert "\n" not in model.stats().not_learning


def test_a_lesson_that_cannot_be_made_ends_learning_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("torch")

    def failing(*_: object) -> None:
        raise MemoryError("no memory")

    with opened("off", tmp_path) as model:
        expected = texts(model)
    with opened(f"{OTHER}+learn:4", tmp_path) as model:
        monkeypatch.setattr("haversack.edge.learning.lessons.Maker.made", failing)
        assert texts(model) == expected
        assert model.stats().not_learning == "no lesson can be made of a text: no memory"
        assert learner_of(model)._process is None


# ------------------------------------------------------------------------ memory
def test_the_learner_is_part_of_the_plan() -> None:
    pytest.importorskip("torch")
    planned = edge.plan(edge.builtin_model(), "2GiB", ctx=256, threads=1)
    drafting, learning = with_drafts(planned, OTHER), with_drafts(planned, OTHER, learns=True)
    assert drafting.drafter is not None and learning.drafter is not None
    more = learning.drafter_bytes - drafting.drafter_bytes
    assert more == learning.drafter.learner_bytes == learning.drafter.parts()["draft learner"]
    assert 1 << 28 < more < 1 << 29
    learning.budget().check_integrity()


def test_what_cannot_learn_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    planned = edge.plan(edge.builtin_model(), "2GiB", ctx=256, threads=1)
    with pytest.raises(edge.ModelFileError, match=r"cannot learn: give the drafter as a GGUF"):
        with_drafts(planned, Path("model.onnx"), learns=True)
    with pytest.raises(edge.ModelFileError, match="is qwen3moe"):
        with_drafts(planned, edge.builtin_model(), learns=True)
    monkeypatch.setattr(learner_plan, "find_spec", lambda _: None)
    with pytest.raises(edge.HaversackError, match=r"pip install 'haversack\[train\]'"):
        with_drafts(planned, OTHER, learns=True)
    monkeypatch.setattr(learner_plan, "find_spec", lambda _: True)
    monkeypatch.setattr(learner_plan, "_MOST_BYTES", 1 << 20)
    with pytest.raises(edge.BudgetError, match="to learn, more than"):
        with_drafts(planned, OTHER, learns=True)


def test_one_that_was_not_loaded_to_learn_does_not(tmp_path: Path) -> None:
    with opened(str(OTHER), tmp_path) as model:
        with pytest.raises(edge.PromptError, match="was not loaded to learn"):
            model.speculate(f"{OTHER}+learn")
        assert model._loop.speculation.learner is None
