"""OpenAI's responses. Nothing is stored: a request brings its whole history."""

import time
import uuid
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from sse_starlette import ServerSentEvent

from haversack.edge.replies import Piece
from haversack.edge.server.answers import server_event
from haversack.edge.server.chats import ChatPrompt
from haversack.edge.server.errors import bad_request
from haversack.edge.server.fields import Fields
from haversack.edge.server.jobs import Ask, Begin, End, Event
from haversack.edge.server.openai import (
    chosen_tools,
    read_choice,
    read_content,
    read_function,
    read_sampling,
    tool_call,
)
from haversack.edge.tool_calls import Object, ToolCall


def read_response(body: Fields) -> Ask:
    """Read the body of a response. Raises ApiError."""
    if body.text("previous_response_id") is not None:
        raise bad_request("previous_response_id: nothing is stored, send the whole input")
    messages = list[Object]()
    instructions = body.text("instructions")
    if instructions is not None:
        messages.append({"role": "system", "content": instructions})
    if isinstance(body.values.get("input"), str):
        messages.append({"role": "user", "content": body.values["input"]})
    else:
        items = body.objects("input")
        if not items:
            raise body.refuse("input", "text or a list of items")
        messages += [message for item in items for message in _read_item(item)]
    tools = [
        read_function(tool, "parameters")
        for tool in body.objects("tools")
        if tool.text("type") == "function"
    ]
    prompt = chosen_tools(ChatPrompt(messages, tools), *read_choice(body))
    reasoning = body.object("reasoning")
    if reasoning is not None and reasoning.text("effort") is not None:
        prompt = replace(prompt, variables={"reasoning_effort": reasoning.text("effort")})
    settings = read_sampling(body) | _read_format(body)
    return Ask(body.text("model"), prompt, body.count("max_output_tokens"), settings)


def _read_item(item: Fields) -> list[Object]:
    kinds: dict[str, Callable[[Fields], list[Object]]] = {
        "message": _read_message,
        "function_call": _read_call,
        "function_call_output": lambda fields: [
            {
                "role": "tool",
                "tool_call_id": fields.text("call_id") or "",
                "content": read_content(fields, "output"),
            }
        ],
        "reasoning": lambda _: [],
    }
    return item.one_of("type", kinds) if item.text("type") else _read_message(item)


def _read_message(item: Fields) -> list[Object]:
    role = item.need("role", str, "user, assistant, system or developer")
    if role not in ("user", "assistant", "system", "developer"):
        raise item.refuse("role", "user, assistant, system or developer")
    role = "system" if role == "developer" else role
    return [{"role": role, "content": read_content(item)}]


def _read_call(item: Fields) -> list[Object]:
    call = tool_call(item.text("call_id") or "", item.need("name", str, "text"), item)
    return [{"role": "assistant", "content": "", "tool_calls": [call]}]


def _read_format(body: Fields) -> Object:
    text = body.object("text")
    format = None if text is None else text.object("format")
    if format is None:
        return {}
    kinds: dict[str, Callable[[Fields], Object]] = {
        "text": lambda _: {},
        "json_object": lambda _: {"json_schema": {"type": "object", "additionalProperties": True}},
        "json_schema": lambda fields: {"json_schema": fields.need_object("schema").values},
    }
    return format.one_of("type", kinds)


class ResponseWriter:
    """A response: items of reasoning, text and function calls."""

    def __init__(self) -> None:
        self._id, self._created, self._model = f"resp_{uuid.uuid4().hex}", time.time(), ""
        self._items = list[Object]()
        self._end: End | None = None
        self._num_events = 0

    def write(self, event: Event) -> list[ServerSentEvent]:
        match event:
            case Begin():
                self._model = event.model
                created = self._event("response.created", response=self.whole())
                return [created, self._event("response.in_progress", response=self.whole())]
            case Piece():
                return self._add_text(event)
            case ToolCall():
                return self._add_call(event)
            case End():
                self._end = event
                kind = "completed" if self._status == "completed" else "incomplete"
                done = self._stop_item()
                return [*done, self._event(f"response.{kind}", response=self.whole())]
            case _:
                return []

    @property
    def _status(self) -> str:
        if self._end is None:
            return "in_progress"
        return "incomplete" if self._end.reason in ("length", "context") else "completed"

    def whole(self) -> Object:
        whole: Object = {
            "id": self._id,
            "object": "response",
            "created_at": self._created,
            "model": self._model,
            "status": self._status,
            "output": self._items if self._end is not None else [],
            "error": None,
            "incomplete_details": None,
            "instructions": None,
            "metadata": {},
            "parallel_tool_calls": True,
            "tool_choice": "auto",
            "tools": [],
            "usage": None,
        }
        if self._end is not None:
            tokens = {
                "input_tokens": self._end.prompt_tokens,
                "output_tokens": self._end.num_tokens,
                "total_tokens": self._end.prompt_tokens + self._end.num_tokens,
            }
            details = {
                "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
                "output_tokens_details": {"reasoning_tokens": 0},
            }
            whole["usage"] = tokens | details
        if self._status == "incomplete":
            whole["incomplete_details"] = {"reason": "max_output_tokens"}
        return whole

    # ------------------------------------------------------------------ items
    def _add_text(self, piece: Piece) -> list[ServerSentEvent]:
        kind = "reasoning" if piece.is_reasoning else "message"
        begun = list[ServerSentEvent]()
        if not self._items or self._items[-1]["type"] != kind:
            part_kind = "reasoning_text" if piece.is_reasoning else "output_text"
            part: Object = {"type": part_kind, "text": ""}
            part |= {} if piece.is_reasoning else {"annotations": []}
            item: Object = {"status": "in_progress", "content": []}
            extra: Object = {"summary": []} if piece.is_reasoning else {"role": "assistant"}
            begun = self._begin(kind, item | extra)
            self._items[-1]["content"].append(part)
            begun.append(self._part_event("response.content_part.added", part=dict(part)))
        self._items[-1]["content"][0]["text"] += piece.text
        name = "reasoning_text" if piece.is_reasoning else "output_text"
        more: Object = {} if piece.is_reasoning else {"logprobs": []}
        return [*begun, self._part_event(f"response.{name}.delta", delta=piece.text, **more)]

    def _add_call(self, call: ToolCall) -> list[ServerSentEvent]:
        told = {"call_id": f"call_{uuid.uuid4().hex[:24]}", "name": call.name}
        begun = self._begin("function_call", {**told, "arguments": "", "status": "in_progress"})
        self._items[-1]["arguments"] = call.arguments
        kind = "response.function_call_arguments"
        return [
            *begun,
            self._item_event(f"{kind}.delta", delta=call.arguments),
            self._item_event(f"{kind}.done", arguments=call.arguments, name=call.name),
        ]

    def _begin(self, kind: str, item: Object) -> list[ServerSentEvent]:
        stopped = self._stop_item()
        prefix = {"message": "msg", "reasoning": "rs", "function_call": "fc"}[kind]
        self._items.append({"id": f"{prefix}_{uuid.uuid4().hex}", "type": kind, **item})
        index, told = len(self._items) - 1, dict(self._items[-1])
        if "content" in told:
            told["content"] = []
        added = self._event("response.output_item.added", output_index=index, item=told)
        return [*stopped, added]

    def _stop_item(self) -> list[ServerSentEvent]:
        if not self._items:
            return []
        item = self._items[-1]
        item["status"] = "completed"
        done = self._event(
            "response.output_item.done", output_index=len(self._items) - 1, item=item
        )
        if item["type"] == "function_call":
            return [done]
        [part] = item["content"]
        kind, text = part["type"], part["text"]
        more: Object = {"logprobs": []} if kind == "output_text" else {}
        return [
            self._part_event(f"response.{kind}.done", text=text, **more),
            self._part_event("response.content_part.done", part=part),
            done,
        ]

    # ----------------------------------------------------------------- events
    def _part_event(self, kind: str, **values: Any) -> ServerSentEvent:
        return self._item_event(kind, content_index=0, **values)

    def _item_event(self, kind: str, **values: Any) -> ServerSentEvent:
        index = len(self._items) - 1
        return self._event(kind, item_id=self._items[-1]["id"], output_index=index, **values)

    def _event(self, kind: str, **values: Any) -> ServerSentEvent:
        number, self._num_events = self._num_events, self._num_events + 1
        return server_event({"type": kind, "sequence_number": number, **values}, kind)
