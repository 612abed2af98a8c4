"""The training text: what is cleaned, what is held out, how chats are made of tales."""

import json
import random
from pathlib import Path

import pytest

from haversack.devices.errors import StorageError
from haversack.tools.training import corpus

CORPUS = Path(__file__).parents[2] / "data" / "corpus"
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


def test_a_story_is_told_on_request_about_what_is_in_it() -> None:
    (chat,) = corpus.story_chats([corpus.body(TALE)], random.Random(1))
    request, answer = chat.split("<|im_end|>")[:2]
    assert "fox" in request or "crow" in request
    assert request.startswith("<|im_start|>user\n")
    assert answer == "\n<|im_start|>assistant\n" + corpus.body(TALE)
    assert list(corpus.story_chats(["Nothing happened."], random.Random(1))) == []


def test_what_is_held_out_does_not_train() -> None:
    training = {
        text
        for source in corpus.story_sources(CORPUS) + corpus.chat_sources(CORPUS, seed=1)
        for text in source.documents
    }
    for source in corpus.held_out_sources(CORPUS):
        assert source.documents, source.domain
        assert not training & set(source.documents), source.domain


def test_every_domain_has_text_and_equal_seeds_give_equal_chats() -> None:
    sources = corpus.chat_sources(CORPUS, seed=1)
    assert [source.domain for source in sources if not source.documents] == []
    assert sources == corpus.chat_sources(CORPUS, seed=1)
    assert sources[0] != corpus.chat_sources(CORPUS, seed=2)[0]


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
