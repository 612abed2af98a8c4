import logging
from typing import Any

import llama_cpp
import pytest

from haversack.devices.errors import PromptError
from haversack.edge.schema import MAX_GRAMMAR_CHARS, check_grammar, schema_to_gbnf

NODE = {"type": "object", "properties": {"next": {"$ref": "#/$defs/node"}}}


def rule(schema: Any, name: str = "root") -> str:
    """The right side of one rule of the grammar, which llama.cpp must accept."""
    gbnf = schema_to_gbnf(schema)
    sampler = llama_cpp.llama_sampler_init_grammar(None, gbnf.encode(), b"root")
    assert sampler, f"llama.cpp refuses {gbnf}"
    llama_cpp.llama_sampler_free(sampler)
    rules = dict(line.split(" ::= ", 1) for line in gbnf.splitlines())
    return rules[name]


@pytest.mark.parametrize(
    "schema",
    [
        {},
        {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]},
        {"type": "array", "items": {"type": "string", "maxLength": 1000}, "maxItems": 1000},
        {"anyOf": [{"type": "null"}, {"type": "number"}]},
        {"type": ["string", "null"], "description": "either"},
        {"type": "string", "format": "date-time"},
        {"allOf": [{"properties": {"a": {"const": 1}}}, {"properties": {"b": {"enum": [True]}}}]},
        {"type": "object", "additionalProperties": {"type": "boolean"}},
        {"type": "object", "properties": {f"p{i}": {"type": "string"} for i in range(100)}},
        {"properties": {"pattern": {"type": "string"}, "minimum": {"type": "number"}}},
    ],
)
def test_llama_cpp_accepts(schema: dict[str, Any]) -> None:
    rule(schema)


@pytest.mark.parametrize(
    ("constant", "literal"),
    [
        ('say "hi"', r'"\"say \\\"hi\\\"\""'),
        ("a\\b", r'"\"a\\\\b\""'),
        ("é😀", r'"\"é😀\""'),
        ("a\nb", r'"\"a\\nb\""'),
        ([1, None], r'"[1, null]"'),
    ],
)
def test_constants_are_json(constant: Any, literal: str) -> None:
    assert rule({"const": constant}) == literal


def test_property_names_are_json() -> None:
    schema = {"type": "object", "properties": {'é"': {"type": "null"}}}
    assert rule(schema, "--kv").startswith(r'"\"é\\\"\"" space ":"')


def test_definitions_named_like_other_rules() -> None:
    schema = {
        "type": "object",
        "properties": {
            "node": {"type": "object", "properties": {"v": {"type": "string"}}},
            "other": {"$ref": "#/$defs/node"},
            "text": {"$ref": "#/$defs/string"},
        },
        "$defs": {"string": {"const": 7}, "node": NODE},
    }
    assert rule(schema, "other") == "def-0-node"
    assert rule(schema, "def-0-node-next") == "def-0-node"
    assert rule(schema, "def-1-string") == '"7"'


@pytest.mark.parametrize(
    ("pattern", "inside"),
    [
        ("^[0-9]+$", "[0-9]+"),
        (r"^\d\w\s$", "[0-9] [A-Za-z0-9_] [ ]"),
        (r"^a\.b\-[\w.\-]$", r'"a" [\x2E] "b" [\x2D] [A-Za-z0-9_.\x2D]'),
        (r"^\(a\)\$$", r'"(a)" [\x24]'),
        ("^a|b$", '"a" | "b"'),
        ("^[^x].$", r"[^x\x22\x5C\x0A\x0D] [^\x22\x5C\x0A\x0D]"),
    ],
)
def test_patterns_stay_inside_the_string(pattern: str, inside: str) -> None:
    assert rule({"type": "string", "pattern": pattern}) == rf'"\"" ({inside}) "\"" space'


@pytest.mark.parametrize(
    ("schema", "part"),
    [
        ("{", "cannot be read"),
        ("[]", "not a JSON object"),
        ({"const": {1}}, "cannot be read"),
        ({"const": "\ud800"}, "not valid Unicode"),
        ({"title": "anything"}, "Unrecognized schema"),
        ({"$ref": "#/$defs/nowhere"}, "Error resolving ref"),
        ({"$ref": "https://example.org/schema"}, "not allowed"),
        ({"type": "string", "maxLength": 10**9}, "maxLength is 1000000000"),
        ({"type": "array", "items": {}, "minItems": -1}, "minItems is -1"),
        ({"type": "string", "pattern": "^]$"}, "cannot stand here"),
        ({"type": "string", "pattern": "^a}$"}, "cannot stand here"),
        ({"type": "string", "pattern": '^"$'}, "cannot stand here"),
        ({"type": "string", "pattern": "^a$|^b$"}, "cannot stand here"),
        ({"type": "string", "pattern": "a"}, "begin \\^ and end"),
        ({"type": "string", "pattern": "^a{1000000000}$"}, "repeats more than"),
        ({"type": "string", "pattern": r"^\bword$"}, "not supported"),
        ({"type": "string", "pattern": "^(?:a)$"}, "Unsupported pattern"),
        ({"title": "x" * 300_000}, "shorten it"),
    ],
)
def test_refused(schema: Any, part: str) -> None:
    with pytest.raises(PromptError, match=part):
        schema_to_gbnf(schema)


def test_what_is_not_enforced_is_said(caplog: pytest.LogCaptureFixture) -> None:
    number = {"type": "integer", "minimum": 1, "not": {"const": 3}}
    schema = {"type": "object", "properties": {"n": number}}
    with caplog.at_level(logging.WARNING, "haversack"):
        schema_to_gbnf(schema)
    assert caplog.messages == ["the grammar does not enforce these of the schema: minimum, not"]


def test_schemas_are_left_as_they_are() -> None:
    schema = {"type": "string", "pattern": "^.$"}
    schema_to_gbnf(schema)
    assert schema == {"type": "string", "pattern": "^.$"}


def test_check_grammar() -> None:
    assert check_grammar('a ::= "x"\nroot ::= a') == 'a ::= "x"\nroot ::= a'
    for gbnf in ("", "a ::= b", "root = a"):
        with pytest.raises(PromptError, match="no rule named root"):
            check_grammar(gbnf)
    with pytest.raises(PromptError, match="at most"):
        check_grammar("x" * (MAX_GRAMMAR_CHARS + 1))
