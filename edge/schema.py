"""From a JSON Schema to GBNF, the grammar that llama.cpp samples with.

The work is done by the converter of llama-cpp-python; this file repairs what it gets wrong (quotes,
backslashes and emoji in names and constants; definitions named like other rules; regular
expressions that leave the JSON string), and refuses what would make it loop or explode.
"""

import functools
import json
import logging
import re
from typing import Any, cast

from llama_cpp.llama_grammar import SchemaConverter

from haversack.devices.errors import PromptError

MAX_SCHEMA_CHARS = 1 << 18
MAX_GRAMMAR_CHARS = 1 << 20
MAX_REPEATS = 1000  # llama.cpp refuses repetitions above some thousand

NOT_ENFORCED = frozenset(
    """
    contains dependentRequired dependentSchemas else exclusiveMaximum exclusiveMinimum if
    maxProperties maximum minProperties minimum multipleOf not patternProperties propertyNames then
    unevaluatedItems unevaluatedProperties uniqueItems
    """.split()
)
REPEATS = frozenset(["minItems", "maxItems", "minLength", "maxLength"])
NAME_MAPS = frozenset(["properties", "$defs", "definitions"])  # their keys are names, not keywords

ESCAPED_BY_CONVERTER = frozenset("[](){}|*+?")
CLASS_ESCAPES = {"d": "0-9", "w": "A-Za-z0-9_", "s": " "}
NO_STRING_CHARS = r"\x22\x5C\x0A\x0D"  # what ends or escapes in a JSON string
PATTERN_TOKEN = re.compile(r"\[(?:\\.|[^\]\\])*\]|\\.|\{[^}]*\}|[\]}.^$\"]", re.DOTALL)
NO_TOKENS = frozenset(']}^$"')  # outside of brackets, unescaped

_log = logging.getLogger("haversack")


def check_grammar(gbnf: str) -> str:
    """Returns `gbnf`; raises `PromptError` unless it is text that could be a grammar."""
    if len(gbnf) > MAX_GRAMMAR_CHARS:
        raise PromptError(f"the grammar has {len(gbnf)} characters: at most {MAX_GRAMMAR_CHARS}")
    if not re.search(r"^\s*root\s*::=", gbnf, re.MULTILINE):
        raise PromptError('the grammar has no rule named root: start it with "root ::= "')
    try:
        gbnf.encode()
    except UnicodeEncodeError as error:
        raise PromptError(f"the grammar is not valid Unicode: {error}") from error
    return gbnf


def schema_to_gbnf(schema: str | dict[str, Any]) -> str:
    """GBNF for JSON that follows `schema`; raises `PromptError` for one it cannot express.

    Keywords that GBNF cannot enforce, such as `minimum`, are logged as a warning.
    """
    try:
        text = schema if isinstance(schema, str) else json.dumps(schema)
        if not isinstance(json.loads(text), dict):
            raise ValueError("it is not a JSON object")
    except (TypeError, ValueError, RecursionError) as error:
        raise PromptError(f"the JSON schema cannot be read: {error}") from error
    if len(text) > MAX_SCHEMA_CHARS:
        raise PromptError(f"the JSON schema has over {MAX_SCHEMA_CHARS} characters: shorten it")
    return _convert(text)


@functools.lru_cache(maxsize=16)
def _convert(text: str) -> str:
    schema = json.loads(text)
    ignored = _prepare(schema)
    if ignored:
        _log.warning("the grammar does not enforce these of the schema: %s", ", ".join(ignored))
    converter = _Converter()
    try:
        converter.visit(converter.resolve_refs(schema, "schema"), "")
        return check_grammar(converter.format_grammar())
    except (AssertionError, ArithmeticError, AttributeError, LookupError) as error:
        raise PromptError(f"the JSON schema cannot be a grammar: {error}") from error
    except (RecursionError, TypeError, ValueError) as error:
        raise PromptError(f"the JSON schema cannot be a grammar: {error}") from error


class _Converter(SchemaConverter):  # type: ignore[misc]  # the binding is seen as Any
    def __init__(self) -> None:
        super().__init__(prop_order={}, allow_fetch=False, dotall=False, raw_pattern=False)
        self._rule_of_ref: dict[str, str] = {}

    def _format_literal(self, literal: str) -> str:
        """GBNF for a JSON text; the original leaves backslashes as they are."""
        text = json.dumps(json.loads(literal), ensure_ascii=False)
        return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'

    def _resolve_ref(self, ref: str) -> str:
        """The rule of a definition; the original takes any rule that has the same last name."""
        if ref not in self._rule_of_ref:
            rule_name = f"def-{len(self._rule_of_ref)}-{ref.split('/')[-1]}"
            self._rule_of_ref[ref] = re.sub("[^a-zA-Z0-9-]+", "-", rule_name)  # for recursion
            self._rule_of_ref[ref] = self.visit(self._refs[ref], rule_name)
        return self._rule_of_ref[ref]


def _prepare(schema: dict[str, Any]) -> list[str]:
    """Checks all of `schema`, rewrites its patterns; returns the keywords that have no effect."""
    ignored: set[str] = set()
    todo: list[tuple[object, bool]] = [(schema, False)]
    while todo:
        node, is_name_map = todo.pop()
        if isinstance(node, list):
            todo.extend((item, False) for item in cast(list[object], node))
        elif isinstance(node, dict):
            pairs = cast(dict[str, Any], node)
            if not is_name_map:
                _check_repeats(pairs)
                ignored |= NOT_ENFORCED & pairs.keys()
                if isinstance(pairs.get("pattern"), str):
                    pairs["pattern"] = _inside_string(pairs["pattern"])
            todo.extend((value, key in NAME_MAPS) for key, value in pairs.items())
    return sorted(ignored)


def _check_repeats(node: dict[str, Any]) -> None:
    for key in REPEATS & node.keys():
        if not isinstance(node[key], int) or not 0 <= node[key] <= MAX_REPEATS:
            raise PromptError(f"{key} is {node[key]!r}: give a whole number up to {MAX_REPEATS}")


def _inside_string(pattern: str) -> str:
    """`pattern` in the converter's dialect, kept from matching what ends a JSON string."""
    anchored = re.fullmatch(r"\^(.*)(?<!\\)\$", pattern, re.DOTALL)
    if anchored is None:
        raise PromptError(f"pattern {pattern!r} does not match whole strings: begin ^ and end $")
    inner = PATTERN_TOKEN.sub(lambda match: _pattern_token(match.group()), anchored[1])
    return f"^({inner})$"  # the group keeps the quotes outside of an alternation


def _pattern_token(token: str) -> str:
    if token == ".":
        return f"[^{NO_STRING_CHARS}]"
    if token in NO_TOKENS:
        raise PromptError(f"pattern: {token} cannot stand here: escape it or leave it out")
    if token[0] == "{":
        if any(int(count) > MAX_REPEATS for count in re.findall(r"\d+", token)):
            raise PromptError(f"pattern: {token} repeats more than {MAX_REPEATS} times")
        return token
    if token[0] == "\\":
        return token if token[1] in ESCAPED_BY_CONVERTER else f"[{_class_escape(token)}]"
    chars = re.sub(r"\\.", lambda match: _class_escape(match.group()), token[1:-1])
    return f"[{chars}{NO_STRING_CHARS}]" if chars.startswith("^") else f"[{chars}]"


def _class_escape(token: str) -> str:
    """An escape of two characters, as it is written between square brackets in GBNF."""
    char = token[1]
    if char in CLASS_ESCAPES:
        return CLASS_ESCAPES[char]
    if char.isalnum() or char in '"\\' or not char.isascii():
        raise PromptError(f"pattern: {token} is not supported: list the characters in [..]")
    return f"\\x{ord(char):02X}"
