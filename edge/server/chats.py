"""What a chat's request asks of a model: the prompt with tools, and how the reply is read."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from haversack.devices.errors import PromptError
from haversack.edge.replies import ReplyFormat, reply_format
from haversack.edge.templates import ChatTemplate
from haversack.edge.tool_calls import Object

_INSTRUCTION = """You may call these functions:
{tools}
To call one, write <tool_call>{{"name": NAME, "arguments": OBJECT}}</tool_call> and nothing else."""


@dataclass(frozen=True)
class Tool:
    """A function that the model may ask for; `parameters` is a JSON Schema."""

    name: str
    description: str = ""
    parameters: Object = field(default_factory=dict[str, Any])

    def to_dict(self) -> Object:
        """Return it as templates expect it."""
        inner = {
            "name": self.name,
            "description": self.description,
            "parameters": self.parameters or {"type": "object", "properties": {}},
        }
        return {"type": "function", "function": inner}


@dataclass(frozen=True)
class ChatPrompt:
    """Messages in the shape of OpenAI's API, with arguments of tool calls as objects.

    `forced` are the tools of which one must be called. `variables` are given to the template.
    """

    messages: Sequence[Object]
    tools: Sequence[Tool] = ()
    forced: Sequence[Tool] = ()
    variables: Mapping[str, Any] = field(default_factory=dict[str, Any])

    def render(self, template: ChatTemplate) -> str:
        """Return the prompt. Raises PromptError."""
        if "tools" not in template.source:
            return template.render(self._plain_messages(), **self.variables)
        tools = [tool.to_dict() for tool in self.tools] or None
        try:
            return template.render(self.messages, tools=tools, **self.variables)
        except PromptError:  # some templates want the arguments as text
            texts = [_with_text_arguments(message) for message in self.messages]
            if texts == self.messages:
                raise
            return template.render(texts, tools=tools, **self.variables)

    def format(self, template: ChatTemplate) -> ReplyFormat:
        """Return how the reply is taken apart."""
        format = reply_format(template.source)
        return format if self.tools else format.without_calls()

    @property
    def parameters(self) -> dict[str, Object]:
        return {tool.name: tool.parameters for tool in self.tools}

    def forced_schema(self) -> Object | None:
        """Return the JSON Schema of a reply that is one call of a tool, if one is forced."""
        if not self.forced:
            return None
        definitions, calls = dict[str, Any](), list[Object]()
        for tool in self.forced:
            parameters = dict(tool.parameters) or {"type": "object", "properties": {}}
            definitions |= parameters.pop("$defs", {})
            call = {"name": {"const": tool.name}, "arguments": parameters}
            calls.append({"type": "object", "properties": call, "required": list(call)})
        return {"anyOf": calls} | ({"$defs": definitions} if definitions else {})

    def _plain_messages(self) -> list[Object]:
        """The messages for a template that knows no tools: calls and results become text."""
        plain = [_without_tools(message) for message in self.messages]
        if not self.tools:
            return plain
        listed = "\n".join(_json(tool.to_dict()["function"]) for tool in self.tools)
        told = _INSTRUCTION.format(tools=listed)
        if plain and plain[0]["role"] == "system":
            return [{**plain[0], "content": f"{plain[0]['content']}\n\n{told}"}, *plain[1:]]
        return [{"role": "system", "content": told}, *plain]


def _without_tools(message: Object) -> Object:
    role, content = message["role"], message["content"]
    if role == "tool":
        return {"role": "user", "content": f"<tool_response>{content}</tool_response>"}
    calls = [_json(call["function"]) for call in message.get("tool_calls", ())]
    written = [content, *(f"<tool_call>{call}</tool_call>" for call in calls)]
    return {"role": role, "content": "\n".join(filter(None, written))}


def _with_text_arguments(message: Object) -> Object:
    if "tool_calls" not in message:
        return message
    calls = [
        {
            **call,
            "function": {**call["function"], "arguments": _json(call["function"]["arguments"])},
        }
        for call in message["tool_calls"]
    ]
    return {**message, "tool_calls": calls}


def _json(value: object) -> str:
    return json.dumps(value, ensure_ascii=False)
