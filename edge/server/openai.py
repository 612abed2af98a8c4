"""OpenAI's chat completions and completions."""

import json
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from sse_starlette import ServerSentEvent

from haversack.edge.prompt import Prompt
from haversack.edge.replies import Piece
from haversack.edge.server.answers import server_event
from haversack.edge.server.chats import ChatPrompt, Tool
from haversack.edge.server.errors import bad_request
from haversack.edge.server.fields import Fields
from haversack.edge.server.jobs import Ask, Begin, End, Event, Logprobs, TokenText
from haversack.edge.tool_calls import Object, ToolCall

_ANY_OBJECT: Object = {"type": "object", "additionalProperties": True}
_ROLES = ("system", "developer", "user", "assistant", "tool", "function")
_DONE = ServerSentEvent("[DONE]", sep="\n")


# --------------------------------------------------------------------- requests
def read_chat(body: Fields) -> Ask:
    """Read the body of a chat completion. Raises ApiError."""
    settings = read_sampling(body)
    if body.flag("logprobs"):
        settings["logprobs"] = body.count("top_logprobs") or 0
    settings |= _read_format(body)
    messages = [_read_message(message) for message in body.objects("messages")]
    if not messages:
        raise body.refuse("messages", "a list of at least one message")
    tools = [_read_tool(tool) for tool in body.objects("tools")]
    prompt = chosen_tools(ChatPrompt(messages, tools), *read_choice(body))
    prompt = replace(prompt, variables=read_variables(body))
    most = body.count("max_completion_tokens")
    most = body.count("max_tokens") if most is None else most
    return Ask(body.text("model"), prompt, most, settings)


def read_completion(body: Fields) -> Ask:
    """Read the body of a completion. Raises ApiError."""
    settings = read_sampling(body) | _read_format(body)
    settings["logprobs"] = body.count("logprobs")
    most = body.count("max_tokens")
    return Ask(
        body.text("model"), read_prompt(body, "prompt"), 16 if most is None else most, settings
    )


def read_prompt(body: Fields, name: str) -> Prompt:
    """A text, or token ids; of a list of those the only one."""
    value = body.values.get(name)
    if isinstance(value, list) and len(value) == 1 and isinstance(value[0], str | list):
        value = value[0]
    if isinstance(value, str):
        return value
    if isinstance(value, list) and value and all(type(token) is int for token in value):
        return value
    raise body.refuse(name, "one text, or token ids")


def read_sampling(body: Fields) -> dict[str, Any]:
    """The settings that all protocols share, where they are given."""
    if (body.count("n") or 1) != 1:
        raise body.refuse("n", "1")
    numbers = ["temperature", "top_p", "min_p", "frequency_penalty", "presence_penalty"]
    found: dict[str, Any] = {name: body.number(name) for name in [*numbers, "repeat_penalty"]}
    found |= {"top_k": body.count("top_k"), "seed": body.get("seed", int, "a whole number")}
    found["stop"] = body.texts("stop") or None
    found["grammar"] = body.text("grammar")
    return {name: value for name, value in found.items() if value is not None}


def read_variables(body: Fields) -> Object:
    """What the chat template is told besides the messages."""
    given = body.object("chat_template_kwargs")
    variables = {} if given is None else dict(given.values)
    effort = body.text("reasoning_effort")
    if effort is not None:
        variables["reasoning_effort"] = effort
        variables.setdefault("enable_thinking", effort not in ("none", "minimal"))
    return {
        name: value
        for name, value in variables.items()
        if name not in ("messages", "tools", "add_generation_prompt")
    }


def _read_format(body: Fields) -> Object:
    format = body.object("response_format")
    if format is None:
        return {}
    kinds: dict[str, Callable[[Fields], Object | None]] = {
        "text": lambda _: None,
        "json_object": lambda _: _ANY_OBJECT,
        "json_schema": lambda fields: (
            fields.need_object("json_schema").need_object("schema").values
        ),
    }
    schema = format.one_of("type", kinds)
    return {} if schema is None else {"json_schema": schema}


def _read_message(message: Fields) -> Object:
    role = message.need("role", str, f"one of {', '.join(_ROLES)}")
    if role not in _ROLES:
        raise message.refuse("role", f"one of {', '.join(_ROLES)}")
    role = {"developer": "system", "function": "tool"}.get(role, role)
    read: Object = {"role": role, "content": read_content(message)}
    for name in ("name", "tool_call_id", "reasoning_content"):
        if (text := message.text(name)) is not None:
            read[name] = text
    calls = [_read_call(call) for call in message.objects("tool_calls")]
    return read | ({"tool_calls": calls} if calls else {})


def read_content(message: Fields, name: str = "content") -> str:
    """The text of a message, or of its parts that are text."""
    value = message.values.get(name)
    if value is None or isinstance(value, str):
        return value or ""
    texts = list[str]()
    for part in message.objects(name):
        kind = part.need("type", str, "text")
        if kind not in ("text", "input_text", "output_text", "refusal"):
            raise part.refuse("type", "text: pictures and sound are not understood")
        texts.append(part.text("text") or part.text("refusal") or "")
    return "".join(texts)


def _read_call(call: Fields) -> Object:
    function = call.need_object("function")
    return tool_call(call.text("id") or "", function.need("name", str, "text"), function)


def tool_call(call_id: str, name: str, source: Fields, field: str = "arguments") -> Object:
    """An earlier call of a tool as templates expect it; its arguments are JSON or an object."""
    arguments: Any = source.values.get(field) or {}
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments)
        except (ValueError, RecursionError):
            raise source.refuse(field, "a JSON object") from None
    if not isinstance(arguments, dict):
        raise source.refuse(field, "a JSON object")
    function = {"name": name, "arguments": arguments}
    return {"id": call_id, "type": "function", "function": function}


def _read_tool(tool: Fields) -> Tool:
    return read_function(tool.need_object("function"), "parameters")


def read_function(function: Fields, schema: str) -> Tool:
    parameters = function.object(schema)
    return Tool(
        function.need("name", str, "text"),
        function.text("description") or "",
        {} if parameters is None else parameters.values,
    )


def read_choice(body: Fields) -> tuple[str, str | None]:
    if isinstance(body.values.get("tool_choice"), dict):
        named = body.need_object("tool_choice")
        function = named.object("function") or named
        return "required", function.need("name", str, "text")
    choice = body.text("tool_choice") or "auto"
    if choice not in ("auto", "none", "required"):
        raise body.refuse("tool_choice", "auto, none, required or a function")
    return choice, None


def chosen_tools(prompt: ChatPrompt, choice: str, name: str | None) -> ChatPrompt:
    """Return the prompt with the tools that the model may, or must, use. Raises ApiError."""
    if choice == "none":
        return replace(prompt, tools=())
    forced = [tool for tool in prompt.tools if name in (None, tool.name)]
    if choice == "required" and not forced:
        raise bad_request("tool_choice wants a tool that is not among tools: add it")
    return replace(prompt, forced=forced if choice == "required" else ())


# ---------------------------------------------------------------------- answers
@dataclass
class _Writer:
    """What the answers of both have in common."""

    stream_usage: bool
    kind: str
    id: str = field(default_factory=lambda: f"chatcmpl-{uuid.uuid4().hex}")
    created: int = field(default_factory=lambda: int(time.time()))
    model: str = ""
    end: End | None = None
    logprobs: list[TokenText] = field(default_factory=list[TokenText])

    def _head(self, kind: str) -> Object:
        return {"id": self.id, "object": kind, "created": self.created, "model": self.model}

    def _chunk(self, choice: Object) -> ServerSentEvent:
        usage = {"usage": None} if self.stream_usage else {}
        blank = {"index": 0, "finish_reason": None, "logprobs": None}
        return server_event({**self._head(self.kind), "choices": [blank | choice], **usage})

    def _last(self) -> list[ServerSentEvent]:
        if not self.stream_usage:
            return [_DONE]
        return [server_event({**self._head(self.kind), "choices": [], "usage": self._usage}), _DONE]

    @property
    def _usage(self) -> Object:
        assert self.end is not None
        prompt, completion = self.end.prompt_tokens, self.end.num_tokens
        total = prompt + completion
        return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": total}


def _reason(end: End, has_calls: bool = False) -> str:
    if end.reason in ("length", "context"):
        return "length"
    return "tool_calls" if has_calls else "stop"


class ChatWriter(_Writer):
    """A chat completion."""

    def __init__(self, stream_usage: bool) -> None:
        super().__init__(stream_usage, "chat.completion.chunk")
        self._text, self._reasoning, self._calls = "", "", list[Object]()

    def write(self, event: Event) -> list[ServerSentEvent]:
        match event:
            case Begin():
                self.model = event.model
                return [self._chunk({"delta": {"role": "assistant", "content": ""}})]
            case Piece(is_reasoning=True):
                self._reasoning += event.text
                return [self._chunk({"delta": {"reasoning_content": event.text}})]
            case Piece():
                self._text += event.text
                return [self._chunk({"delta": {"content": event.text}})]
            case ToolCall():
                self._calls.append(_written_call(event))
                delta = {"tool_calls": [{"index": len(self._calls) - 1, **self._calls[-1]}]}
                return [self._chunk({"delta": delta})]
            case Logprobs():
                self.logprobs += event.tokens
                told = {"content": list(map(_token_object, event.tokens))}
                return [self._chunk({"delta": {}, "logprobs": told})]
            case End():
                self.end = event
                reason = _reason(event, bool(self._calls))
                return [self._chunk({"delta": {}, "finish_reason": reason}), *self._last()]
            case _:
                return []

    def whole(self) -> Object:
        assert self.end is not None
        message: Object = {"role": "assistant", "content": self._text or None, "refusal": None}
        if not self._calls:
            message["content"] = self._text
        if self._reasoning:
            message["reasoning_content"] = self._reasoning
        if self._calls:
            message["tool_calls"] = self._calls
        choice = {
            "index": 0,
            "message": message,
            "finish_reason": _reason(self.end, bool(self._calls)),
            "logprobs": _content_object(self.logprobs),
        }
        return {**self._head("chat.completion"), "choices": [choice], "usage": self._usage}


def _content_object(tokens: Sequence[TokenText]) -> Object | None:
    return {"content": list(map(_token_object, tokens))} if tokens else None


def _written_call(call: ToolCall) -> Object:
    function = {"name": call.name, "arguments": call.arguments}
    return {"id": f"call_{uuid.uuid4().hex[:24]}", "type": "function", "function": function}


def _token_object(token: TokenText) -> Object:
    likeliest = [_logprob_object(text, logprob) for text, logprob in token.likeliest]
    return {**_logprob_object(token.text, token.logprob), "top_logprobs": likeliest}


def _logprob_object(text: bytes, logprob: float) -> Object:
    return {"token": text.decode(errors="replace"), "logprob": logprob, "bytes": list(text)}


class CompletionWriter(_Writer):
    """A completion of a text."""

    def __init__(self, stream_usage: bool, echo: str = "") -> None:
        super().__init__(stream_usage, "text_completion")
        self._text = self._echo = echo

    def write(self, event: Event) -> list[ServerSentEvent]:
        match event:
            case Begin():
                self.model = event.model
                return [self._chunk({"text": self._echo})] if self._echo else []
            case Piece():
                self._text += event.text
                return [self._chunk({"text": event.text})]
            case Logprobs():
                self.logprobs += event.tokens
                return [self._chunk({"text": "", "logprobs": _logprob_lists(event.tokens)})]
            case End():
                self.end = event
                last = {"text": "", "finish_reason": _reason(event)}
                return [self._chunk(last), *self._last()]
            case _:
                return []

    def whole(self) -> Object:
        assert self.end is not None
        choice = {
            "index": 0,
            "text": self._text,
            "finish_reason": _reason(self.end),
            "logprobs": _logprob_lists(self.logprobs) if self.logprobs else None,
        }
        return {**self._head(self.kind), "choices": [choice], "usage": self._usage}


def _logprob_lists(tokens: Sequence[TokenText]) -> Object:
    decoded: Callable[[bytes], str] = partial(str, encoding="utf-8", errors="replace")
    offsets, place = list[int](), 0
    for token in tokens:
        offsets.append(place)
        place += len(decoded(token.text))
    return {
        "tokens": [decoded(token.text) for token in tokens],
        "token_logprobs": [token.logprob for token in tokens],
        "top_logprobs": [{decoded(t): value for t, value in token.likeliest} for token in tokens],
        "text_offset": offsets,
    }
