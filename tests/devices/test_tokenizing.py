"""Texts of any length give tokens or an error, and never end the process."""

import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from haversack import edge
from haversack.devices.errors import PromptError
from haversack.devices.llama_model import LlamaModel

ROOMY_BYTES = 1 << 30
LONG = 60_000
# Alone each of these is one match of a regular expression of some vocabulary.
KINDS = {
    "letters": "a",
    "capitals": "A",
    "both": "aB",
    "blanks": " ",
    "dots": ".",
    "newlines": "\n",
    "digits": "7",
    "emoji": "\N{SLIGHTLY SMILING FACE}",
    "words": "ab ",
    "accents": "\N{LATIN SMALL LETTER E WITH ACUTE}",
    "rules": "-=",
}


@pytest.fixture(scope="module")
def deep(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LlamaModel]:
    """Return the built-in model's vocabulary with Bloom's rules, whose regular expression recurses
    at every character."""
    key, own, other = b"tokenizer.ggml.pre", b"gpt-2", b"bloom"
    content = edge.builtin_model().read_bytes()
    place = content.index(own, content.index(key))
    path = tmp_path_factory.mktemp("deep") / "deep.gguf"
    path.write_bytes(content[:place] + other + content[place + len(other) :])
    model = LlamaModel(path, dry=True)
    yield model
    model.close()
    path.unlink()


@pytest.mark.parametrize("kind", KINDS)
def test_a_long_run_becomes_tokens(deep: LlamaModel, kind: str) -> None:
    vocabulary, text = deep.vocabulary, KINDS[kind] * LONG
    tokens = vocabulary.tokenize(text, add_special=False, most_stack_bytes=ROOMY_BYTES)
    assert b"".join(map(vocabulary.piece, tokens)) == text.encode()


def test_both_stacks_give_the_same_tokens(deep: LlamaModel) -> None:
    """Short texts stay on the caller's stack."""
    vocabulary = deep.vocabulary
    sentences = "Once upon a time, there was a fox. " * 400 + "a" * 100
    long = vocabulary.tokenize(sentences + "a" * 900, most_stack_bytes=ROOMY_BYTES)
    short = vocabulary.tokenize(sentences)
    assert long[: len(short) - 100] == short[:-100]


def test_a_run_that_takes_too_much_is_one_line(deep: LlamaModel) -> None:
    with pytest.raises(PromptError, match=r"has 9,000,000 characters without a break, .* of stack"):
        deep.vocabulary.tokenize("a" * 9_000_000, most_stack_bytes=ROOMY_BYTES)
    assert deep.vocabulary.tokenize("a" * 4)  # it still works


def test_no_run_is_too_long_where_nothing_recurses(known_answer_model: Path) -> None:
    model = LlamaModel(known_answer_model, dry=True)
    tokens = model.vocabulary.tokenize("a" * 1_000_000, add_special=False)
    assert len(tokens) > 1000
    model.close()


PROGRAM = """
import sys
from pathlib import Path
from haversack import edge

with edge.load(Path(sys.argv[1]), ram="1GiB", ctx=64, threads=1) as model:
    good = model.generate("Once", 3, temperature=0).text
    try:
        print("tokenizing", flush=True)
        model.tokenize("Once upon a time. " * 2_000_000)
    except KeyboardInterrupt:
        print("interrupted")
    assert model.generate("Once", 3, temperature=0).text == good
print("closed")
"""


@pytest.mark.skipif(sys.platform == "win32", reason="Ctrl-C is no signal to one process there")
def test_ctrl_c_ends_the_wait_and_the_model_stays_usable(known_answer_model: Path) -> None:
    command = [sys.executable, "-c", PROGRAM, str(known_answer_model)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "tokenizing\n"
        process.send_signal(signal.SIGINT)
        output, _ = process.communicate(timeout=300)
    assert process.returncode == 0
    assert output.splitlines() == ["interrupted", "closed"]
