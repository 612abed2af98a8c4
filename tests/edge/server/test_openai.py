"""The official client of OpenAI, against a real server."""

import json
import math
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from typing import Any

import openai
import pytest

ASKED: Any = {
    "model": "tales-moe",
    "messages": [{"role": "user", "content": "Tell me a story about a fox."}],
    "max_tokens": 24,
    "seed": 7,
    "temperature": 0.3,  # where the usual one ends one text in thirty before
}
TOOL: Any = {
    "type": "function",
    "function": {
        "name": "weather",
        "parameters": {
            "type": "object",
            "properties": {"town": {"enum": ["Rome", "Oslo"]}},
            "required": ["town"],
            "additionalProperties": False,
        },
    },
}
SCHEMA = {
    "type": "object",
    "properties": {"animal": {"enum": ["fox", "hare"]}, "legs": {"enum": [2, 4]}},
    "required": ["animal", "legs"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def client(url: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=120) as made:
        yield made


def test_models_are_listed(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["tales-moe"]
    assert client.models.retrieve("tales-moe").owned_by == "haversack"
    with pytest.raises(openai.NotFoundError, match="there is tales-moe"):
        client.models.retrieve("../../etc/passwd")


def test_an_answer_and_its_stream_are_the_same(client: openai.OpenAI) -> None:
    whole = client.chat.completions.create(**ASKED)
    [choice] = whole.choices
    assert choice.finish_reason == "length"
    assert whole.usage is not None and whole.usage.completion_tokens == 24

    chunks = list(
        client.chat.completions.create(**ASKED, stream=True, stream_options={"include_usage": True})
    )
    pieces = [chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices]
    assert len([piece for piece in pieces if piece]) > 10
    assert "".join(pieces) == choice.message.content
    assert [chunk.choices[0].finish_reason for chunk in chunks[-2:-1]] == ["length"]
    assert chunks[-1].usage == whole.usage


def test_a_stop_string_ends_the_text(client: openai.OpenAI) -> None:
    text = client.chat.completions.create(**ASKED).choices[0].message.content or ""
    word = text.split()[6]
    choice = client.chat.completions.create(**ASKED, stop=[word]).choices[0]
    assert choice.finish_reason == "stop"
    assert choice.message.content is not None and word not in choice.message.content
    assert text.startswith(choice.message.content)


def test_a_schema_is_followed(client: openai.OpenAI) -> None:
    format: Any = {"type": "json_schema", "json_schema": {"name": "beast", "schema": SCHEMA}}
    answer = client.chat.completions.create(**(ASKED | {"max_tokens": 300}), response_format=format)
    found = json.loads(answer.choices[0].message.content or "")
    assert found["animal"] in ("fox", "hare") and found["legs"] in (2, 4)


def test_a_tool_is_called_whole_and_streamed(client: openai.OpenAI) -> None:
    asked = ASKED | {"max_tokens": 300, "tools": [TOOL], "tool_choice": "required"}
    answer = client.chat.completions.create(**asked)
    [choice] = answer.choices
    assert choice.finish_reason == "tool_calls"
    [call] = choice.message.tool_calls or []
    assert call.type == "function" and call.function.name == "weather"
    assert json.loads(call.function.arguments)["town"] in ("Rome", "Oslo")

    deltas = [
        delta
        for chunk in client.chat.completions.create(**asked, stream=True)
        for delta in chunk.choices[0].delta.tool_calls or ()
    ]
    assert "".join(d.function.arguments or "" for d in deltas if d.function) == (
        call.function.arguments
    )


def test_the_result_of_a_tool_goes_back(client: openai.OpenAI) -> None:
    function = {"name": "weather", "arguments": '{"town": "Oslo"}'}
    messages = [
        *ASKED["messages"],
        {
            "role": "assistant",
            "tool_calls": [{"id": "1", "type": "function", "function": function}],
        },
        {"role": "tool", "tool_call_id": "1", "content": "Rain."},
    ]
    answer = client.chat.completions.create(**(ASKED | {"messages": messages}), tools=[TOOL])
    assert answer.choices[0].message.content


def test_logprobs_are_those_of_the_tokens(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(**ASKED, logprobs=True, top_logprobs=3)
    [choice] = answer.choices
    assert choice.logprobs is not None and choice.logprobs.content is not None
    told = choice.logprobs.content
    assert len(told) == 24
    text = b"".join(bytes(token.bytes or ()) for token in told).decode()
    assert text.strip() == (choice.message.content or "").strip()
    for token in told:
        assert len(token.top_logprobs) == 3
        assert sum(math.exp(each.logprob) for each in token.top_logprobs) <= 1 + 1e-6
        assert token.logprob <= token.top_logprobs[0].logprob

    chunks = client.chat.completions.create(**ASKED, logprobs=True, top_logprobs=3, stream=True)
    streamed = [
        t for c in chunks if c.choices[0].logprobs for t in c.choices[0].logprobs.content or ()
    ]
    assert streamed == told


def test_a_completion_goes_on_from_a_text(client: openai.OpenAI) -> None:
    asked: Any = {"model": "tales-moe", "prompt": "The fox", "max_tokens": 4, "temperature": 0}
    whole = client.completions.create(**asked, logprobs=2, echo=True)
    [choice] = whole.choices
    assert choice.text.startswith("The fox")
    assert choice.logprobs is not None and len(choice.logprobs.tokens or ()) == 4
    assert whole.usage is not None and whole.usage.completion_tokens == 4
    pieces = [chunk.choices[0].text for chunk in client.completions.create(**asked, stream=True)]
    assert "The fox" + "".join(pieces) == choice.text


def test_errors_are_the_client_s_own(client: openai.OpenAI, running: Any) -> None:
    before = running.server.queue.num_cancelled
    with pytest.raises(openai.NotFoundError):
        client.chat.completions.create(**(ASKED | {"model": "gpt-9"}))
    with pytest.raises(openai.BadRequestError, match="temperature is -1"):
        client.chat.completions.create(**(ASKED | {"temperature": -1}))
    with pytest.raises(openai.BadRequestError) as caught:
        long = [{"role": "user", "content": "fox " * 600}]
        client.chat.completions.create(**(ASKED | {"messages": long}))
    assert caught.value.code == "context_length_exceeded"
    assert running.server.queue.num_cancelled == before


def test_answers_in_parallel_are_those_of_a_lone_client(client: openai.OpenAI) -> None:
    def text(seed: int) -> str:
        answer = client.chat.completions.create(**(ASKED | {"seed": seed, "temperature": 0.8}))
        return answer.choices[0].message.content or ""

    alone = [text(seed) for seed in range(6)]
    with ThreadPoolExecutor(6) as pool:
        assert list(pool.map(text, range(6))) == alone
    assert len(set(alone)) > 1


def test_a_stream_that_is_closed_is_cancelled(
    client: openai.OpenAI, running: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The text is held until the server has seen that its reader left."""
    assert client.chat.completions.create(**ASKED).choices
    queue, context = running.server.queue, running.server.host.loaded.model._engine.context
    before, passes, compute = queue.num_cancelled, count(), context.compute

    def held(rows: Any) -> None:
        compute(rows)
        while next(passes) > 3 and queue.num_cancelled == before:
            time.sleep(0.001)

    monkeypatch.setattr(context, "compute", held)
    stream = client.chat.completions.create(**(ASKED | {"max_tokens": 400}), stream=True)
    next(iter(stream))
    stream.close()
    assert client.chat.completions.create(**ASKED).choices
    assert queue.num_cancelled == before + 1


def test_a_response_and_its_stream_are_the_same(client: openai.OpenAI) -> None:
    asked: Any = {"model": "tales-moe", "input": "Tell me a story about a fox."}
    asked |= {"max_output_tokens": 24, "temperature": 0.3, "instructions": "Be brief."}
    asked |= {"extra_body": {"seed": 7}}
    whole = client.responses.create(**asked)
    assert whole.status == "incomplete" and whole.output_text
    assert whole.usage is not None and whole.usage.output_tokens == 24
    with client.responses.stream(**asked) as stream:
        pieces = [event.delta for event in stream if event.type == "response.output_text.delta"]
    assert "".join(pieces) == whole.output_text


def test_a_response_calls_a_tool(client: openai.OpenAI) -> None:
    tool = {"type": "function", **TOOL["function"]}
    asked: Any = {"model": "tales-moe", "input": "Weather?", "tools": [tool]}
    asked |= {"tool_choice": "required", "extra_body": {"seed": 7}}
    [call] = client.responses.create(**asked).output
    assert call.type == "function_call" and json.loads(call.arguments)["town"] in ("Rome", "Oslo")
    output = {"type": "function_call_output", "call_id": call.call_id, "output": "Rain."}
    history = [{"role": "user", "content": "Weather?"}, call.model_dump(), output]
    asked |= {"input": history, "tool_choice": "auto", "max_output_tokens": 8}
    assert client.responses.create(**asked).output_text
