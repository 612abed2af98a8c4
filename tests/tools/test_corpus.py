"""The training text: what is cleaned, what is held out, where the samples are not."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from haversack.devices.errors import StorageError
from haversack.tools import corpus

CORPUS = Path(__file__).parents[1] / "data" / "corpus"
SAMPLES = Path(corpus.__file__).parent / "samples.json"
TALE = "The Fox and the Crow\n\nA Crow sat in a tree. A Fox saw the Crow. The Fox was hungry."


def test_typography_becomes_plain() -> None:
    assert corpus.clean(" “It\u2019s”\u00a0here--now… ") == '"It\'s" here—now...'


def test_headings_are_no_part_of_a_story() -> None:
    assert corpus.body(TALE) == TALE.partition("\n\n")[2]
    assert corpus.body("XII\n\nTHE STORM\n\nIt rained.") == "It rained."
    assert corpus.body("It rained.\n\nIt stopped.") == "It rained.\n\nIt stopped."


def test_hard_text_is_told_from_easy_text() -> None:
    easy = "The cat sat. The dog ran. It was fun."
    hard = "Notwithstanding considerable difficulties, philosophers nevertheless contemplated it."
    assert corpus.ari(easy) < 2 < 15 < corpus.ari(hard)


def test_what_is_held_out_does_not_train() -> None:
    training = {
        text
        for source in (
            corpus.story_sources(CORPUS)
            + corpus.chat_sources(CORPUS, seed=1)
            + corpus.manners_sources(CORPUS, seed=1)
        )
        for text in source.documents
    }
    for source in corpus.held_out_sources(CORPUS):
        assert source.documents, source.domain
        assert not training & set(source.documents), source.domain


@pytest.mark.parametrize("sources_of", [corpus.chat_sources, corpus.manners_sources])
def test_every_domain_has_text_and_equal_seeds_give_equal_chats(
    sources_of: Callable[[Path, int], list[corpus.Source]],
) -> None:
    sources = sources_of(CORPUS, 1)
    assert [source.domain for source in sources if not source.documents] == []
    assert sources == sources_of(CORPUS, 1)
    assert sources[0] != sources_of(CORPUS, 2)[0]


def test_the_sample_prompts_were_never_trained_on() -> None:
    prompts = json.loads(SAMPLES.read_text())["prompts"]
    assert len(set(prompts)) == 10
    asked = {chat["messages"][0]["content"] for chat in corpus.simple_chat()}
    assert not asked & set(prompts)


def test_a_folder_that_is_no_corpus_is_named(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=r"cannot read .*jsonl\.gz.*give the folder"):
        corpus.story_sources(tmp_path)
    (tmp_path / corpus.TALES[0]).write_bytes(b"no gzip")
    with pytest.raises(StorageError, match="cannot read"):
        corpus.story_sources(tmp_path)
