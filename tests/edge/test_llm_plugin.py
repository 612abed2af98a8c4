"""The program `llm` finds the plugin and runs prompts through it."""

import json
from collections.abc import Iterator
from typing import Any

import llm
import pytest

from haversack.edge import llm_plugin


@pytest.fixture(scope="module")
def model() -> Iterator[llm.Model]:
    yield llm.get_model("haversack")
    llm_plugin._loaded(None, "2GiB", None).close()
    llm_plugin._loaded.cache_clear()


def test_a_prompt_is_answered(model: llm.Model) -> None:
    asked: Any = {"ram": "2GiB", "max_tokens": 16, "seed": 1, "temperature": 0.3}
    response = model.prompt("Tell me a story about a fox.", system="Be brief.", **asked)
    assert len(list(response)) > 5
    assert (response.output_tokens, bool(response.input_tokens)) == (16, True)
    again = model.prompt("Tell me a story about a fox.", system="Be brief.", stream=False, **asked)
    assert again.text() == response.text()


def test_a_chat_goes_on(model: llm.Model) -> None:
    chat = model.conversation()
    asked: Any = {"ram": "2GiB", "max_tokens": 8, "seed": 1, "temperature": 0.3}
    first = chat.prompt("Hello!", **asked)
    first.text()
    second = chat.prompt("And then?", **asked)
    second.text()
    assert (second.input_tokens or 0) > (first.input_tokens or 0) + 8


def test_a_schema_is_followed(model: llm.Model) -> None:
    schema = {"type": "object", "properties": {"legs": {"enum": [2, 4]}}, "required": ["legs"]}
    asked: Any = {"ram": "2GiB", "max_tokens": 60, "temperature": 0}
    response = model.prompt("A fox", schema=schema, **asked)
    assert json.loads(response.text())["legs"] in (2, 4)
