"""Tool calls as models write them: JSON, tags, or a name with marks around it."""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

Object = dict[str, Any]
Parameters = Mapping[str, Mapping[str, Any]]  # of each tool, the JSON Schema of its arguments


@dataclass(frozen=True)
class ToolCall:
    """A tool that the model wants called; `arguments` is a JSON object as text."""

    name: str
    arguments: str


def read_tool_calls(body: str, parameters: Parameters) -> list[ToolCall]:
    """Return the calls that a text holds, none if it cannot be read. `parameters` say which values
    are texts where a format does not quote them."""
    readers: Sequence[Callable[[str, Parameters], list[ToolCall]]] = (
        _json_calls,
        _tagged_calls,
        _keyed_calls,
        _invoked_calls,
        _marked_calls,
        _braced_calls,
    )
    return next(filter(None, (read(body, parameters) for read in readers)), [])


def _call(name: str, arguments: object) -> ToolCall:
    return ToolCall(name, json.dumps(arguments, ensure_ascii=False))


# ------------------------------------------------------------------------ JSON
def _json_calls(body: str, __: Parameters) -> list[ToolCall]:
    """`{"name": "f", "arguments": {..}}`, a list of such, or `{"f": {..}}`."""
    try:
        found, _ = json.JSONDecoder().raw_decode(body.lstrip())
    except (ValueError, RecursionError):
        return []
    items: list[object] = found if isinstance(found, list) else [found]
    calls = [_json_call(cast(Object, item)) for item in items if isinstance(item, dict)]
    return [call for call in calls if call is not None] if len(calls) == len(items) else []


def _json_call(item: Object) -> ToolCall | None:
    inner = item.get("function")
    item = cast(Object, inner) if isinstance(inner, dict) else item
    name, arguments = item.get("name"), item.get("arguments", item.get("parameters"))
    if isinstance(name, str):
        if isinstance(arguments, str):  # JSON within JSON
            return ToolCall(name, arguments) if _is_object(arguments) else None
        return _call(name, {} if arguments is None else arguments)
    if len(item) == 1:
        [(name, arguments)] = item.items()
        return _call(name, arguments) if isinstance(arguments, dict) else None
    return None


def _is_object(text: str) -> bool:
    try:
        return isinstance(json.loads(text), dict)
    except (ValueError, RecursionError):
        return False


# ------------------------------------------------------------------------ tags
_FUNCTION = re.compile(r"<function=([^>\s]+)>(.*?)(?:</function>|\Z)", re.DOTALL)
_PARAMETER = re.compile(
    r"<parameter=([^>\s]+)>\n?(.*?)\n?(?:</parameter>|(?=<parameter=)|\Z)", re.DOTALL
)
_KEY = re.compile(r"<arg_key>(.*?)</arg_key>\s*<arg_value>(.*?)(?:</arg_value>|\Z)", re.DOTALL)
_KEYED = re.compile(r"\s*([\w.-]+)\s*(?=<arg_key>|\Z)")
_INVOKE = re.compile(r'<｜DSML｜invoke name="([^"]+)">(.*?)(?:</｜DSML｜invoke>|\Z)', re.DOTALL)
_INVOKED = re.compile(
    r'<｜DSML｜parameter name="([^"]+)" string="(true|false)">(.*?)</｜DSML｜parameter>', re.DOTALL
)


def _tagged_calls(body: str, parameters: Parameters) -> list[ToolCall]:
    """`<function=f><parameter=p>value</parameter></function>`."""
    return [
        _call(name, _typed(_PARAMETER.findall(rest), name, parameters))
        for name, rest in _FUNCTION.findall(body)
    ]


def _keyed_calls(body: str, parameters: Parameters) -> list[ToolCall]:
    """`f<arg_key>p</arg_key><arg_value>value</arg_value>`."""
    head = _KEYED.match(body)
    if head is None:
        return []
    return [_call(head[1], _typed(_KEY.findall(body), head[1], parameters))]


def _invoked_calls(body: str, _: Parameters) -> list[ToolCall]:
    """The tags of DeepSeek V3.2 and V4, which say themselves whether a value is text."""
    calls = list[ToolCall]()
    for name, rest in _INVOKE.findall(body):
        found = {
            key: value if is_text == "true" else _value(value)
            for key, is_text, value in _INVOKED.findall(rest)
        }
        calls.append(_call(name, found))
    return calls


def _typed(pairs: Sequence[tuple[str, str]], name: str, parameters: Parameters) -> Object:
    """Values as the tool's schema wants them: JSON, unless it is text."""
    properties = parameters.get(name, {}).get("properties", {})
    kinds = {key: properties.get(key, {}).get("type") for key, _ in pairs}
    return {key: value if kinds[key] == "string" else _value(value) for key, value in pairs}


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


# ----------------------------------------------------------------------- marks
_SEPARATORS = (
    r"<\|tool_call_argument_begin\|>|<｜tool▁sep｜>|(?:\[CALL_ID\]\w+)?\[ARGS\]"
    r"|(?:<\|channel\|>\w+)?\s*(?:<\|constrain\|>)?(?:json)?<\|message\|>|\n```json\n"
)
_MARKED = re.compile(rf"(?:functions\.)?([\w.-]+)(?::\d+)?\s*?(?:{_SEPARATORS})\s*")
_BRACED = re.compile(r"call:([\w.-]+)(\{.*)", re.DOTALL)
_QUOTE, _BARE_KEY = '<|"|>', re.compile(r"([\w.-]+)\s*:")


def _marked_calls(body: str, _: Parameters) -> list[ToolCall]:
    """A name, a mark and a JSON object, once or more."""
    calls, place, decoder = list[ToolCall](), 0, json.JSONDecoder()
    while (head := _MARKED.search(body, place)) is not None:
        place = head.end()
        try:
            arguments, place = decoder.raw_decode(body, place)
        except (ValueError, RecursionError):
            continue
        calls.append(_call(head[1], arguments))
    return calls


def _braced_calls(body: str, _: Parameters) -> list[ToolCall]:
    """`call:f{p:<|"|>text<|"|>,q:1}`."""
    head = _BRACED.match(body.strip())
    if head is None:
        return []
    pieces = head[2].split(_QUOTE)
    pieces[::2] = [_BARE_KEY.sub(r'"\1":', piece) for piece in pieces[::2]]
    pieces[1::2] = [json.dumps(piece) for piece in pieces[1::2]]
    arguments = _value("".join(pieces))
    return [_call(head[1], arguments)] if isinstance(arguments, dict) else []
