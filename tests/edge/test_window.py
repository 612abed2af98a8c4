"""A window: a text goes on where the context is full, from its first tokens and recent ones."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from haversack import edge
from haversack.edge.cache_dir import kv_folder

STORY = "Once upon a time, there was a little girl named Lily."
CTX, FIRST = 64, 8


@pytest.fixture
def model(known_answer_model: Path, tmp_path: Path) -> Iterator[edge.Model]:
    options = edge.LoadOptions(cache_dir=tmp_path, warm_start=False, kv_disk="1GiB")
    with edge.load(known_answer_model, "2GiB", CTX, threads=1, options=options) as model:
        yield model


def test_a_text_ends_where_the_context_is_full_unless_there_is_a_window(model: edge.Model) -> None:
    ended = model.generate(STORY, 200, temperature=0)
    assert len(ended.text) > 0 and ended.finish_reason == "context"
    windowed = model.generate(STORY, 200, temperature=0, keep_first=FIRST)
    assert windowed.text.startswith(ended.text)
    assert (windowed.finish_reason, len(windowed.tokens)) == ("length", 200)
    assert windowed.prompt_tokens == ended.prompt_tokens
    model.check_integrity()


@pytest.mark.parametrize("speculate", ["off", "ngram"])
def test_it_is_the_text_that_goes_on_from_what_is_kept(model: edge.Model, speculate: str) -> None:
    model.speculate(speculate)
    prompt, full = model.tokenize(STORY), CTX + 1  # the last token was chosen and not computed
    windowed = model.generate(prompt, 120, temperature=0, keep_first=FIRST)
    assert windowed.text
    whole = [*prompt, *windowed.tokens]
    recent = (CTX - FIRST) // 2
    kept = [*whole[:FIRST], *whole[full - recent : full]]
    again = model.generate(kept, CTX + 1 - len(kept), temperature=0)
    assert again.text
    assert windowed.tokens[full - len(prompt) :][: len(again.tokens)] == again.tokens


def test_without_a_limit_it_goes_on_until_it_is_cancelled(
    model: edge.Model, tmp_path: Path
) -> None:
    """What it forgets does not fill the disk."""
    generation = model.generate(STORY, temperature=0, keep_first=FIRST)
    for _ in generation:
        if len(generation.tokens) == 5 * CTX:
            generation.cancel()
    assert generation.finish_reason == "cancelled"
    assert not kv_folder(tmp_path).exists()


@pytest.mark.parametrize("keep_first", [1, CTX, 1000])
def test_any_number_of_first_tokens_may_be_kept(keep_first: int, model: edge.Model) -> None:
    generation = model.generate(STORY, 100, temperature=0, keep_first=keep_first)
    assert generation.text and len(generation.tokens) == 100
    with pytest.raises(edge.PromptError, match="keep_first is -1"):
        model.generate(STORY, 100, keep_first=-1)
