"""The official client of Anthropic, against a real server."""

from collections.abc import Iterator
from typing import Any

import anthropic
import pytest

ASKED: Any = {
    "model": "tales-moe",
    "messages": [{"role": "user", "content": "Tell me a story about a fox."}],
    "max_tokens": 24,
    # With the usual temperature one text in thirty ends before.
    "extra_body": {"seed": 7, "temperature": 0.3},
}
TOOL: Any = {
    "name": "weather",
    "input_schema": {
        "type": "object",
        "properties": {"town": {"enum": ["Rome", "Oslo"]}},
        "required": ["town"],
        "additionalProperties": False,
    },
}


@pytest.fixture(scope="module")
def client(url: str) -> Iterator[anthropic.Anthropic]:
    with anthropic.Anthropic(base_url=url, api_key="none", max_retries=0, timeout=120) as made:
        yield made


def test_a_message_and_its_stream_are_the_same(client: anthropic.Anthropic) -> None:
    whole = client.messages.create(**ASKED)
    assert whole.stop_reason == "max_tokens"
    assert whole.usage.output_tokens == 24
    with client.messages.stream(**ASKED) as stream:
        pieces = list(stream.text_stream)
        final = stream.get_final_message()
    assert len(pieces) > 10
    assert final.usage == whole.usage
    assert "".join(pieces) == getattr(whole.content[0], "text", None)


def test_a_stop_sequence_is_told(client: anthropic.Anthropic) -> None:
    text = getattr(client.messages.create(**ASKED).content[0], "text", "")
    word = text.split()[5]
    found = client.messages.create(**ASKED, stop_sequences=[word])
    assert (found.stop_reason, found.stop_sequence) == ("stop_sequence", word)


def test_a_tool_is_used_whole_and_streamed(client: anthropic.Anthropic) -> None:
    asked = ASKED | {"max_tokens": 300, "tools": [TOOL], "tool_choice": {"type": "any"}}
    whole = client.messages.create(**asked)
    [block] = whole.content
    assert whole.stop_reason == "tool_use"
    assert block.type == "tool_use" and block.name == "weather"
    assert block.input in ({"town": "Rome"}, {"town": "Oslo"})
    with client.messages.stream(**asked) as stream:
        [streamed] = stream.get_final_message().content
    assert streamed.type == "tool_use" and streamed.input == block.input

    result = {"type": "tool_result", "tool_use_id": block.id, "content": "Rain."}
    history = [
        *ASKED["messages"],
        {"role": "assistant", "content": [block.model_dump()]},
        {"role": "user", "content": [result, {"type": "text", "text": "So?"}]},
    ]
    answer = client.messages.create(**(ASKED | {"messages": history, "tools": [TOOL]}))
    assert answer.usage.output_tokens > 0


def test_tokens_are_counted_as_they_are_used(client: anthropic.Anthropic) -> None:
    asked = {name: ASKED[name] for name in ("model", "messages")}
    counted = client.messages.count_tokens(**asked, system="Be brief.")
    used = client.messages.create(**ASKED, system="Be brief.").usage
    assert counted.input_tokens == used.input_tokens


def test_errors_are_the_client_s_own(client: anthropic.Anthropic) -> None:
    with pytest.raises(anthropic.NotFoundError, match="not_found_error"):
        client.messages.create(**(ASKED | {"model": "claude-9"}))
    with pytest.raises(anthropic.BadRequestError, match="temperature"):
        client.messages.create(**(ASKED | {"extra_body": {"temperature": -1}}))
    picture: Any = [{"role": "user", "content": [{"type": "image", "source": {}}]}]
    with pytest.raises(anthropic.BadRequestError, match="image"):
        client.messages.create(**(ASKED | {"messages": picture}))
