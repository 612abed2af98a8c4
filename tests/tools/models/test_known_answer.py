"""The known-answer model: its text to the byte, and a file that is always the same."""

import json
from pathlib import Path

import pytest

from haversack.devices.ggml import GgufHeader
from haversack.devices.llama import ContextShape, LlamaContext
from haversack.devices.llama_model import LlamaModel
from haversack.tools.models import known_answer
from haversack.tools.models.known_answer import SOURCES, write_known_answer

BOS = 1
EXPECTED_TEXT = (SOURCES / "expected_greedy.txt").read_bytes()
EXPECTED_IDS = json.loads((SOURCES / "expected_greedy_ids.json").read_text())["ids"]


def greedy(path: Path, num_tokens: int) -> tuple[list[int], bytes]:
    """Plain llama.cpp's greedy continuation of the start token: ids and text."""
    model = LlamaModel(path)
    context = LlamaContext(model, ContextShape(ctx_tokens=256, batch_tokens=8, threads=1))
    ids = [BOS]
    for _ in range(num_tokens):
        context.decode(ids[-1:])
        ids.append(int(context.logits().argmax()))
    text = b"".join(model.vocabulary.piece(token) for token in ids[1:])
    context.close()
    model.close()
    return ids[1:], text.removeprefix(b" ")


@pytest.mark.parametrize(
    ("construction", "num_experts"), [("upcycle", 8), ("split", 2), ("split", 4), ("split", 8)]
)
def test_the_text_is_known_to_the_byte(
    construction: known_answer.Construction, num_experts: int, tmp_path: Path
) -> None:
    path = tmp_path / "model.gguf"
    write_known_answer(path, construction=construction, num_experts=num_experts)
    ids, text = greedy(path, len(EXPECTED_IDS))
    assert ids == EXPECTED_IDS
    assert text == EXPECTED_TEXT
    assert len(text) == 464


def test_equal_arguments_give_equal_bytes(known_answer_model: Path, tmp_path: Path) -> None:
    path = tmp_path / "again.gguf"
    write_known_answer(path)
    assert path.read_bytes() == known_answer_model.read_bytes()


def test_the_vocabulary(known_answer_model: Path) -> None:
    model = LlamaModel(known_answer_model)
    vocabulary = model.vocabulary
    story = "Once upon a time, there was a café.\n"
    assert vocabulary.tokenize("") == [BOS]
    assert vocabulary.tokenize("", add_special=False) == []
    tokens = vocabulary.tokenize(story)
    assert tokens[:5] == [BOS, *EXPECTED_IDS[:4]]
    assert b"".join(map(vocabulary.piece, tokens)) == b" " + story.encode()
    assert vocabulary.ends(2) and not vocabulary.ends(BOS)
    assert (vocabulary.bos, vocabulary.eos) == ("<s>", "</s>")
    model.close()


def test_the_file_says_what_it_is(known_answer_model: Path) -> None:
    with GgufHeader(known_answer_model) as header:
        assert header.value("general.license") == "mit"
        assert header.value("general.source.repo_url") == "https://github.com/karpathy/llama2.c"
        assert header.value("llama.expert_count") == 8
        assert header.value("llama.expert_used_count") == 2
        assert "message['content']" in str(header.value("tokenizer.chat_template"))
    assert "MIT License" in (SOURCES / "LICENSE").read_text()


def test_the_program(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "split.gguf"
    assert known_answer.main([str(path), "--construction", "split", "--experts", "4"]) == 0
    with GgufHeader(path) as header:
        assert header.value("llama.expert_used_count") == 4
    assert known_answer.main([str(path), "--experts", "3"]) == 2
    assert "num_experts 3 is not 2, 4 or 8" in capsys.readouterr().err
