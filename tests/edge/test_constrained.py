"""What sampling settings do to a whole text: grammars, schemas, penalties and stop strings, on the
built-in model, which has special tokens."""

import json
import subprocess
import sys
import threading
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from haversack import edge
from haversack.devices.ggml import GgufHeader
from haversack.edge.loading import builtin_model

START = "<|im_start|>"  # a special token, which does not end a text
BOMB = 'root ::= ("a"?){500} "b"'
SLOW = 'root ::= s "!"\ns ::= s s s | s s | "a" | ""'


@pytest.fixture(scope="module")
def model() -> Iterator[edge.Model]:
    with edge.load(builtin_model(), ram="1GiB", ctx=4096, threads=1, seed=1) as loaded:
        yield loaded


def done(answer: edge.Generation) -> edge.Generation:
    """The generation, read to its end."""
    assert answer.text is not None
    return answer


def follows(model: edge.Model, schema: dict[str, Any]) -> Any:
    """The value that the model writes; it must end on its own, for which there is room enough."""
    answer = model.generate("JSON: ", 4000, temperature=0.8, seed=4, json_schema=schema)
    value = json.loads(answer.text)
    assert answer.finish_reason == "stop"
    return value


# ------------------------------------------------------------------- grammars
def test_texts_have_the_length_they_must_have(model: edge.Model) -> None:
    assert 3 <= len(follows(model, {"type": "string", "minLength": 3, "maxLength": 120})) <= 120
    numbers = {"type": "array", "items": {"enum": [1, 2]}, "minItems": 30, "maxItems": 33}
    assert 30 <= len(follows(model, numbers)) <= 33


def test_an_object_with_many_names(model: edge.Model) -> None:
    names = [f'n"{i}\\é😀' for i in range(110)]
    schema = {"type": "object", "properties": {name: {"const": 7} for name in names}}
    value = follows(model, schema | {"required": names[100:102], "maxProperties": 110})
    assert value.keys() <= set(names) and set(names[100:102]) <= value.keys()
    assert set(value.values()) == {7}


def test_a_text_ends_where_nothing_can_follow(model: edge.Model) -> None:
    answer = model.generate("Is it?", 20, temperature=0, grammar='root ::= "yes" | "no"')
    assert answer.text in ("yes", "no") and answer.finish_reason == "stop"


def test_special_tokens_are_not_in_a_grammars_text(model: edge.Model) -> None:
    """However likely they are: a negative penalty makes those of the prompt likelier."""
    settings: dict[str, Any] = {"temperature": 0, "presence_penalty": -100}
    assert done(model.generate([1], 3, **settings)).tokens == [1, 1, 1]
    answer = done(model.generate([1], 3, **settings, grammar="root ::= [a-z<|_>]+"))
    assert answer.tokens and 1 not in answer.tokens


@pytest.mark.parametrize("grammar", [BOMB, SLOW])
def test_an_exploding_grammar_can_be_cancelled(grammar: str, model: edge.Model) -> None:
    answer = model.generate("a", 200, temperature=0, grammar=grammar)
    reader = threading.Thread(target=lambda: answer.text)
    reader.start()
    answer.cancel()
    reader.join(60)
    assert not reader.is_alive()
    assert answer.finish_reason in ("cancelled", "stop", "length")
    assert done(model.generate("Once", 3, temperature=0)).finish_reason == "length"  # still usable


def test_a_grammar_that_is_too_complex_says_so(model: edge.Model) -> None:
    nested = "root ::= " + "(" * 6 + '"a"?' + "){100}" * 6 + ' "!"'
    answer = model.generate("a" * 30, 250, temperature=0, grammar=nested, presence_penalty=-50)
    with pytest.raises(edge.PromptError, match=r"cannot be followed: .*; simplify it"):
        done(answer)
    assert done(model.generate("Once", 3, temperature=0)).finish_reason == "length"


def test_what_a_grammar_took_goes_with_the_model() -> None:
    with edge.load(builtin_model(), ram="1GiB", ctx=64, threads=1) as loaded:
        engine = loaded._engine
        assert engine is not None
        vocabulary = engine.model.vocabulary
        done(loaded.generate("Once", 2, grammar="root ::= [a-z ]+"))
        trie = weakref.ref(vocabulary.trie)
        done(loaded.generate("Once", 2, json_schema={"type": "string"}))
        assert trie() is vocabulary.trie  # built once for a model
    assert trie() is None


def test_without_a_vocabulary_there_is_no_grammar(tiny_model: Any) -> None:
    with edge.load(tiny_model("qwen3moe"), ram="1GiB", ctx=64, threads=1) as ids:
        answer = ids.generate([1], 3, grammar='root ::= "a"')
        with pytest.raises(edge.PromptError, match="no vocabulary"):
            _ = answer.text


def test_an_unknown_rule_is_named_on_the_command_line(tmp_path: Path) -> None:
    (tmp_path / "wrong.gbnf").write_text("root ::= item+")
    command = [sys.executable, "-m", "haversack.edge", "run", "-p", "x", "--grammar"]
    result = subprocess.run(
        [*command, str(tmp_path / "wrong.gbnf")], capture_output=True, text=True, check=False
    )
    assert result.returncode == 2 and result.stdout == ""
    assert result.stderr.splitlines() == [
        'haversack: Undefined rule identifier "item" in rule root: define it'
    ]


# ------------------------------------------------------------------ penalties
def test_penalties_look_at_the_whole_context(model: edge.Model) -> None:
    def told(last_n: int) -> list[int]:
        prompt = "Once upon a time there was a king who had three sons. Once upon a time"
        settings: dict[str, Any] = {
            "temperature": 0,
            "repeat_penalty": 1.3,
            "repeat_last_n": last_n,
        }
        return done(model.generate(prompt, 100, **settings)).tokens

    assert told(-1) == told(256) == told(1 << 30) != told(8)


@pytest.mark.parametrize("penalty", ["repeat_penalty", "presence_penalty", "frequency_penalty"])
def test_penalties_count_the_prompt(penalty: str, model: edge.Model) -> None:
    prompt = model.tokenize("one two three one two three one two")
    free = done(model.generate(prompt, 1, temperature=0)).tokens
    again = done(model.generate([*free, *prompt], 8, None, temperature=0, **{penalty: 99.0})).tokens
    assert again and not set(again) & {*free, *prompt}


def test_penalties_count_the_whole_chat(model: edge.Model) -> None:
    said = "Once upon a time there was a king."
    reply = model.chat([{"role": "user", "content": said}], 8, temperature=0, presence_penalty=99)
    assert done(reply).tokens and not set(reply.tokens) & set(
        model.tokenize(said, add_special=False)
    )


# --------------------------------------------------------------- stop strings
@pytest.mark.parametrize(
    ("stop", "num_tokens"), [(START, 1), (START + START, 2), ("no", 5), ("im_start", 5), ("<|", 5)]
)
def test_a_stop_string_of_special_tokens_stops(
    stop: str, num_tokens: int, model: edge.Model
) -> None:
    answer = model.generate([1], 5, temperature=0, presence_penalty=-100, stop=(stop,))
    assert answer.text == "" and len(answer.tokens) == num_tokens
    assert answer.finish_reason == ("length" if num_tokens == 5 else "stop")


def test_a_stop_string_of_text_and_a_special_token(model: edge.Model) -> None:
    """The penalties make each token of the prompt come once more, in either order."""
    prompt = [*model.tokenize(" king", add_special=False), 1]
    settings: dict[str, Any] = {"temperature": 0, "presence_penalty": -100, "frequency_penalty": 50}
    free = done(model.generate(prompt, 6, **settings)).tokens
    assert len(prompt) == 2 and set(free[:2]) == set(prompt)
    stop = START + " king" if free[0] == 1 else " king" + START
    stopped = done(model.generate(prompt, 6, **settings, stop=(stop, "never")))
    assert (stopped.text, stopped.tokens, stopped.finish_reason) == ("", free[:2], "stop")


# --------------------------------------------------------------- broken weights
def test_weights_that_are_no_numbers_are_named(tmp_path: Path, tiny_model: Any) -> None:
    path = tiny_model("qwen3moe")
    data = bytearray(path.read_bytes())
    with GgufHeader(path) as header:
        norm = next(tensor for tensor in header.tensors if tensor.name == "output_norm.weight")
        data[norm.offset : norm.offset + norm.num_bytes] = b"\xff" * norm.num_bytes
    (tmp_path / "broken.gguf").write_bytes(data)
    with edge.load(tmp_path / "broken.gguf", ram="1GiB", ctx=64, threads=1) as broken:
        answer = broken.generate([1, 2, 3], 4, temperature=0)
        with pytest.raises(edge.ModelFileError, match="logits that are not finite"):
            _ = answer.text
