"""Replies are taken apart as the models' own templates write them."""

import json
from pathlib import Path
from typing import Any

import pytest

from haversack.edge.replies import Piece, ReplyReader, reply_format
from haversack.edge.server.chats import ChatPrompt, Tool
from haversack.edge.templates import ChatTemplate
from haversack.edge.tool_calls import ToolCall

TEMPLATES = Path(__file__).parents[1] / "data" / "templates"
WITHOUT_CALLS = {"microsoft-Phi-3.5-mini-instruct", "ibm-granite-granite-3.3-2B-Instruct"}
NAMES = sorted({path.stem for path in TEMPLATES.glob("*.jinja")} - WITHOUT_CALLS)
ARGUMENTS: dict[str, Any] = {"town": "São Paulo", "days": 3}
PROPERTIES = {"town": {"type": "string"}, "days": {"type": "integer"}}
WEATHER = Tool("get_weather", "Tells the weather", {"type": "object", "properties": PROPERTIES})
USER = {"role": "user", "content": "How is the weather?"}
FUNCTION = {"name": "get_weather", "arguments": ARGUMENTS}
CALL = {
    "role": "assistant",
    "content": "",
    "tool_calls": [{"id": "abcdefghi", "type": "function", "function": FUNCTION}],
}


def taken(template: str, reply: str, prompt: str = "") -> tuple[str, str, list[ToolCall]]:
    """The reasoning, text and calls of a reply that comes letter by letter."""
    parameters = {WEATHER.name: WEATHER.parameters}
    reader = ReplyReader(reply_format(template), prompt, parameters)
    parts = [part for letter in reply for part in reader.push(letter)] + reader.finish()
    pieces = [part for part in parts if isinstance(part, Piece)]
    reasoning = "".join(piece.text for piece in pieces if piece.is_reasoning)
    text = "".join(piece.text for piece in pieces if not piece.is_reasoning)
    return reasoning, text, [part for part in parts if isinstance(part, ToolCall)]


@pytest.mark.parametrize("name", NAMES)
def test_calls_are_read_as_the_template_writes_them(name: str) -> None:
    source = (TEMPLATES / f"{name}.jinja").read_text(encoding="utf-8")
    template = ChatTemplate(source, bos="<s>", eos="</s>")
    before = ChatPrompt([USER], [WEATHER], variables={"add_generation_prompt": False})
    written = ChatPrompt([USER, CALL], [WEATHER], variables={"add_generation_prompt": False})
    texts = [prompt.render(template) for prompt in (before, written)]
    place = next(i for i in range(len(texts[1])) if texts[0][i : i + 1] != texts[1][i])
    _, _, [call] = taken(source, texts[1][place:])
    assert call.name == "get_weather"
    assert json.loads(call.arguments) == ARGUMENTS


def test_calls_of_granite_are_a_list_behind_a_mark() -> None:
    template = (TEMPLATES / "ibm-granite-granite-3.3-2B-Instruct.jinja").read_text("utf-8")
    _, text, calls = taken(template, f"<|tool_call|>{json.dumps([FUNCTION, FUNCTION])}")
    assert text == "" and len(calls) == 2


@pytest.mark.parametrize(
    ("template", "reply"),
    [
        ("<think>", "<think>\nHm.\n\nSo.\n</think>\n\nYes.\n\nNo."),
        ("[THINK]", "[THINK]Hm.\n\nSo.[/THINK]Yes.\n\nNo."),
        ("<seed:think>", "<seed:think>Hm.\n\nSo.</seed:think>Yes.\n\nNo."),
        ("<|inner_prefix|>", "<|inner_prefix|>Hm.\n\nSo.<|inner_suffix|>Yes.\n\nNo."),
        ("<|channel>thought", "<|channel>thought\nHm.\n\nSo.\n<channel|>Yes.\n\nNo."),
        (
            "<|channel|>analysis",
            "<|channel|>analysis<|message|>Hm.\n\nSo.<|end|><|start|>assistant"
            "<|channel|>final<|message|>Yes.\n\nNo.",
        ),
        (
            "[BEGIN FINAL RESPONSE]",
            "Here are my reasoning steps:\nHm.\n\nSo.\n[BEGIN FINAL RESPONSE]\nYes.\n\nNo."
            "\n[END FINAL RESPONSE]",
        ),
        ("<response>", "<think>Hm.\n\nSo.</think><response>Yes.\n\nNo.</response>"),
    ],
)
def test_reasoning_is_kept_apart(template: str, reply: str) -> None:
    assert taken(template, reply) == ("Hm.\n\nSo.", "Yes.\n\nNo.", [])


def test_reasoning_may_begin_in_the_prompt() -> None:
    found = taken("<think>", "Hm.\n</think>\n\nYes.", "<|im_start|>assistant\n<think>\n")
    assert found == ("Hm.", "Yes.", [])


def test_text_without_marks_is_left_as_it_is() -> None:
    for text in ("\n a < b <th \n", "", "<", "<tool_cal"):
        assert taken("", text)[1] == text


def test_a_call_that_cannot_be_read_is_text() -> None:
    reply = "<tool_call>{not json</tool_call>"
    assert taken("", reply) == ("", reply, [])


def test_text_stands_beside_calls() -> None:
    call = json.dumps(FUNCTION)
    reply = f"I look.\n<tool_call>{call}</tool_call>\n<tool_call>\n{call}\n"
    reasoning, text, calls = taken("", reply)
    assert (reasoning, text, len(calls)) == ("", "I look.", 2)
