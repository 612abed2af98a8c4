"""Anthropic's messages."""

import json
import uuid
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from sse_starlette import ServerSentEvent

from haversack.edge.model import Model
from haversack.edge.replies import Piece
from haversack.edge.server.answers import server_event
from haversack.edge.server.chats import ChatPrompt
from haversack.edge.server.fields import Fields
from haversack.edge.server.jobs import Ask, Begin, End, Event
from haversack.edge.server.openai import chosen_tools, read_content, read_function, tool_call
from haversack.edge.tool_calls import Object, ToolCall


def read_messages(body: Fields, counting: bool = False) -> Ask:
    """Read the body of a message. Raises ApiError."""
    most = body.count("max_tokens")
    if not most and not counting:
        raise body.refuse("max_tokens", "a whole number, 1 or more")
    settings: dict[str, Any] = {
        "temperature": body.number("temperature"),
        "top_p": body.number("top_p"),
        "top_k": body.count("top_k"),
        "seed": body.get("seed", int, "a whole number"),
        "stop": body.texts("stop_sequences") or None,
    }
    messages = list[Object]()
    system = read_content(body, "system")
    if system:
        messages.append({"role": "system", "content": system})
    for message in body.objects("messages"):
        messages += _read_message(message)
    if len(messages) == bool(system):
        raise body.refuse("messages", "a list of at least one message")
    tools = [read_function(tool, "input_schema") for tool in body.objects("tools")]
    thinking = body.object("thinking")
    variables: Object = {}
    if thinking is not None:
        variables["enable_thinking"] = thinking.text("type") != "disabled"
    prompt = chosen_tools(ChatPrompt(messages, tools), *_read_choice(body))
    given = {name: value for name, value in settings.items() if value is not None}
    return Ask(body.text("model"), replace(prompt, variables=variables), most, given)


def _read_message(message: Fields) -> list[Object]:
    """The messages that one with blocks becomes: each result of a tool is one of its own."""
    role = message.text("role")
    if role not in ("user", "assistant", "system"):
        raise message.refuse("role", "user or assistant")
    if isinstance(message.values.get("content"), str):
        return [{"role": role, "content": message.values["content"]}]
    kinds: dict[str, Callable[[Fields], Object]] = {
        "text": lambda block: {"text": block.need("text", str, "text")},
        "thinking": lambda block: {"reasoning": block.text("thinking") or ""},
        "redacted_thinking": lambda _: {},
        "tool_use": lambda block: {
            "call": tool_call(
                block.text("id") or "", block.need("name", str, "text"), block, "input"
            )
        },
        "tool_result": lambda block: {
            "result": {
                "role": "tool",
                "tool_call_id": block.text("tool_use_id") or "",
                "content": read_content(block),
            }
        },
    }
    blocks = [block.one_of("type", kinds) for block in message.objects("content")]
    results = [block["result"] for block in blocks if "result" in block]
    read: Object = {"role": role, "content": "".join(block.get("text", "") for block in blocks)}
    reasoning = "".join(block.get("reasoning", "") for block in blocks)
    calls = [block["call"] for block in blocks if "call" in block]
    read |= {"reasoning_content": reasoning} if reasoning else {}
    read |= {"tool_calls": calls} if calls else {}
    has_own = bool(read["content"] or calls or not results)
    return [*results, read] if has_own else results


def _read_choice(body: Fields) -> tuple[str, str | None]:
    choice = body.object("tool_choice")
    if choice is None:
        return "auto", None
    kinds: dict[str, Callable[[Fields], tuple[str, str | None]]] = {
        "auto": lambda _: ("auto", None),
        "none": lambda _: ("none", None),
        "any": lambda _: ("required", None),
        "tool": lambda fields: ("required", fields.need("name", str, "text")),
    }
    return choice.one_of("type", kinds)


def count_tokens(model: Model, ask: Ask) -> Object:
    """How many tokens the prompt of a message has."""
    assert isinstance(ask.prompt, ChatPrompt)
    return {"input_tokens": len(model.tokenize(ask.prompt.render(model.chat_template())))}


class MessageWriter:
    """A message: blocks of text, thinking and tool use."""

    def __init__(self) -> None:
        self._id, self._model, self._prompt_tokens = f"msg_{uuid.uuid4().hex}", "", 0
        self._blocks = list[Object]()
        self._end: End | None = None

    def write(self, event: Event) -> list[ServerSentEvent]:
        match event:
            case Begin():
                self._model, self._prompt_tokens = event.model, event.prompt_tokens
                start = {**self._message(), "content": [], "usage": self._usage(0)}
                return [_event("message_start", message=start)]
            case Piece():
                kind = "thinking" if event.is_reasoning else "text"
                begun = self._begin(kind, {kind: ""})
                self._blocks[-1][kind] += event.text
                return [*begun, self._delta(f"{kind}_delta", **{kind: event.text})]
            case ToolCall():
                call_id = f"toolu_{uuid.uuid4().hex[:24]}"
                block = {"id": call_id, "name": event.name, "input": {}}
                begun = self._begin("tool_use", block)
                self._blocks[-1]["input"] = json.loads(event.arguments)
                return [*begun, self._delta("input_json_delta", partial_json=event.arguments)]
            case End():
                self._end = event
                delta = {"stop_reason": self._reason(), "stop_sequence": event.stop}
                usage = {"output_tokens": event.num_tokens}
                return [
                    *self._stop_block(),
                    _event("message_delta", delta=delta, usage=usage),
                    _event("message_stop"),
                ]
            case _:
                return []

    def whole(self) -> Object:
        assert self._end is not None
        blocks = self._blocks or [{"type": "text", "text": ""}]
        return {
            **self._message(),
            "content": blocks,
            "stop_reason": self._reason(),
            "stop_sequence": self._end.stop,
            "usage": self._usage(self._end.num_tokens),
        }

    def _message(self) -> Object:
        head = {"id": self._id, "type": "message", "role": "assistant", "model": self._model}
        return {**head, "stop_reason": None, "stop_sequence": None}

    def _usage(self, output_tokens: int) -> Object:
        return {"input_tokens": self._prompt_tokens, "output_tokens": output_tokens}

    def _begin(self, kind: str, block: Object) -> list[ServerSentEvent]:
        """Begin a block, unless one of text or thinking goes on."""
        if self._blocks and self._blocks[-1]["type"] == kind != "tool_use":
            return []
        stopped = self._stop_block()
        signature = {"signature": ""} if kind == "thinking" else {}
        self._blocks.append({"type": kind, **block, **signature})
        index, content = len(self._blocks) - 1, dict(self._blocks[-1])
        return [*stopped, _event("content_block_start", index=index, content_block=content)]

    def _delta(self, kind: str, **delta: Any) -> ServerSentEvent:
        index = len(self._blocks) - 1
        return _event("content_block_delta", index=index, delta={"type": kind, **delta})

    def _stop_block(self) -> list[ServerSentEvent]:
        if not self._blocks:
            return []
        return [_event("content_block_stop", index=len(self._blocks) - 1)]

    def _reason(self) -> str:
        assert self._end is not None
        if any(block["type"] == "tool_use" for block in self._blocks):
            return "tool_use"
        if self._end.reason in ("length", "context"):
            return "max_tokens"
        return "stop_sequence" if self._end.stop is not None else "end_turn"


def _event(kind: str, **values: Any) -> ServerSentEvent:
    return server_event({"type": kind, **values}, kind)
