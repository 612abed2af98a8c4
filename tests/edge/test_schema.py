"""Schemas become grammars; which JSON they take is seen byte by byte."""

import json
import logging
from typing import Any

import pytest

from haversack.devices.errors import PromptError
from haversack.devices.grammar import TokenTrie
from haversack.edge.schema import schema_to_grammar

BYTES = TokenTrie([bytes([byte]) for byte in range(256)], ends=[])
NODE = {"type": "object", "properties": {"next": {"$ref": "#/$defs/node"}}}


def takes(schema: Any, text: str) -> bool:
    """Whether a text that follows `schema` may be `text`."""
    matcher = BYTES.matcher(schema_to_grammar(schema))
    for byte in text.encode():
        if not matcher.allows(byte):
            return False
        matcher.accept(byte)
    return matcher.may_end


def takes_value(schema: Any, value: Any) -> bool:
    return takes(schema, json.dumps(value, ensure_ascii=False))


def numbered(count: int) -> dict[str, Any]:
    return {f"p{i}": {"type": "integer"} for i in range(count)}


@pytest.mark.parametrize(
    ("schema", "right", "wrong"),
    [
        ({"type": "string", "maxLength": 255}, "x" * 255, "x" * 256),
        ({"type": "string", "minLength": 300}, "é" * 300, "é" * 299),
        ({"type": "string", "maxLength": 20_000}, "x" * 20_000, "x" * 20_001),
        ({"type": "array", "items": {"type": "integer"}, "maxItems": 150}, [1] * 150, [1] * 151),
        ({"type": "array", "items": {"type": "null"}, "minItems": 150}, [None] * 150, [None]),
        ({"type": "string", "pattern": "^[a-z]{0,200}$"}, "q" * 200, "q" * 201),
        ({"type": "string", "pattern": "^[a-z]{300,400}$"}, "q" * 300, "q" * 299),
        ({"type": "string", "pattern": "b"}, "abc", "ac"),  # not anchored
        ({"type": "string", "pattern": r"^\d{3}-\w+\s$"}, "123-ab ", "12-ab "),
        ({"type": "string", "pattern": "^(?:a|b)$"}, "b", "ab"),
        ({"type": "string", "pattern": '^"$'}, '"', "a"),
        ({"type": "integer", "minimum": -3, "exclusiveMaximum": 120}, 119, 120),
        ({"type": "number", "exclusiveMinimum": 0.5}, 0.51, 0.5),
        ({"type": "integer", "multipleOf": 3}, 12, 13),
        ({"enum": ["a", 2, None]}, 2, 3),
        ({"const": {"a": [1]}}, {"a": [1]}, {"a": [2]}),
        ({"anyOf": [{"type": "null"}, {"type": "number"}]}, 1.5, "x"),
        ({"type": ["string", "null"], "description": "either"}, None, 1),
        ({"type": "string", "format": "date"}, "2024-02-29", "2024-13-01"),
        ({"type": "string", "format": "uuid"}, "123e4567-e89b-12d3-a456-426614174000", "123"),
        ({"type": "array", "prefixItems": [{"type": "null"}], "items": False}, [None], [None, 1]),
        ({"type": "object", "additionalProperties": {"type": "boolean"}}, {"x": True}, {"x": 1}),
        (NODE | {"$defs": {"node": NODE}}, {"next": {"next": {}}}, {"next": 1}),
        ({}, {"any": ["thing", 1]}, None),
    ],
)
def test_what_a_schema_takes(schema: dict[str, Any], right: Any, wrong: Any) -> None:
    assert takes_value(schema, right)
    if schema:
        assert not takes_value(schema, wrong)


@pytest.mark.parametrize("count", [100, 110, 900])
def test_many_properties(count: int) -> None:
    schema = {"type": "object", "properties": numbered(count), "required": [f"p{count - 1}"]}
    assert takes_value(schema, {f"p{i}": i for i in range(count)})
    assert takes_value(schema, {f"p{count - 1}": 0})
    assert not takes_value(schema, {"p0": 0})


@pytest.mark.parametrize("text", ['say "hi"', "a\\b", "é😀", "a\nb", "", "{}[]|*", "\u2028"])
def test_names_and_constants_of_any_characters(text: str) -> None:
    schema = {"type": "object", "properties": {text: {"const": text}}, "required": [text]}
    assert takes_value(schema, {text: text})
    assert not takes_value(schema, {text: text + "x"})


def test_definitions_named_like_other_things() -> None:
    schema = {
        "type": "object",
        "properties": {
            "node": {"type": "object", "properties": {"v": {"type": "string"}}},
            "other": {"$ref": "#/$defs/node"},
            "text": {"$ref": "#/$defs/string"},
        },
        "$defs": {"string": {"const": 7}, "node": NODE},
    }
    assert takes_value(schema, {"node": {"v": "x"}, "other": {"next": {}}, "text": 7})
    assert not takes_value(schema, {"other": {"v": "x"}})
    assert not takes_value(schema, {"text": "7"})


# ----------------------------------------------------------------- what is left open
@pytest.mark.parametrize(
    ("text", "right"),
    [
        ('{"a":1,"b":[1,2]}', True),
        ('{"a": 1, "b": [1, 2]}', True),
        ('{\n  "a": 1,\n  "b": [\n    1\n  ]\n}', True),
        ('{"a":  1}', False),
        ('{\n\n"a": 1}', False),
        (' {"a": 1}', False),
        ('{"a": 1} ', False),
    ],
)
def test_white_space_is_short(text: str, right: bool) -> None:
    """Or a small model fills the context with it."""
    items = {"type": "array", "items": {"type": "integer"}}
    schema = {"type": "object", "properties": {"a": {"type": "integer"}, "b": items}}
    assert takes(schema, text) == right


OPEN = {"properties": {"a": {"type": "integer"}}}
FULL = {"a": 1, "x": 2}


@pytest.mark.parametrize(
    ("schema", "extra"),
    [
        (OPEN, False),
        (OPEN | {"additionalProperties": True}, True),
        (OPEN | {"patternProperties": {"^x": {}}}, True),
        (OPEN | {"required": ["x"]}, True),
        (OPEN | {"required": ["a"], "minProperties": 2}, True),
        ({"anyOf": [OPEN, {"type": "null"}]}, False),
        ({"allOf": [OPEN, {"properties": {"x": {"const": 2}}}]}, True),
        ({"$ref": "#/$defs/o", "$defs": {"o": OPEN}}, False),
        ({"$ref": "#/$defs/o", "description": "an o", "$defs": {"o": OPEN}}, False),
        ({"allOf": [{"$ref": "#/$defs/o"}, {"required": ["x"]}], "$defs": {"o": OPEN}}, True),
        (
            {
                "allOf": [{"$ref": "#/$defs/p"}, {"required": ["x"]}],
                "$defs": {"p": {"$ref": "#/$defs/o"}, "o": OPEN},
            },
            True,
        ),
    ],
)
def test_objects_have_the_properties_that_are_listed(schema: Any, extra: bool) -> None:
    """Or a small model adds one after the other; but schemas that apply together stay open."""
    assert takes_value(schema, FULL) == extra


def test_data_is_not_taken_for_a_schema() -> None:
    value = {"properties": {"a": 1}, "type": "object"}
    assert takes_value({"const": value}, value)
    assert takes_value({"type": "object", "properties": {"properties": OPEN}}, {"properties": {}})


@pytest.mark.parametrize("mark", ["\ufeff", ""])
def test_a_byte_order_mark_is_no_content(mark: str) -> None:
    assert takes(mark + '{"const": "\ufeff"}', '"\ufeff"')


# --------------------------------------------------------------------- refusals
def test_too_many_optional_properties_are_one_line() -> None:
    """Each step would take seconds."""
    matcher = BYTES.matcher(schema_to_grammar({"properties": numbered(1500)}))
    with pytest.raises(PromptError, match=r"max is 4000; .*simplify it") as caught:
        for byte in b'{"p':
            matcher.allowed()
            matcher.accept(byte)
    assert "\n" not in str(caught.value)


def chained(count: int) -> dict[str, Any]:
    definitions = {f"d{i}": {"allOf": [{"$ref": f"#/$defs/d{i + 1}"}]} for i in range(count)}
    return {"$ref": "#/$defs/d0", "$defs": definitions | {f"d{count}": {}}}


@pytest.mark.parametrize(
    ("schema", "part"),
    [
        ("{", "cannot be read"),
        ("[]", "not a JSON object"),
        ({"const": {1}}, "cannot be read"),
        ({"const": "\ud800"}, "surrogate"),
        ({"const": float("nan")}, "cannot be read"),
        ({"$ref": "#/$defs/nowhere"}, "does not exist"),
        ({"$ref": "https://example.org/schema"}, "retrieving it failed"),
        ({"type": "strin"}, "Invalid type: strin"),
        ({"type": "array", "items": {}, "minItems": -1}, "minItems.*-1"),
        ({"type": "string", "minLength": 5, "maxLength": 3}, r"minLength \(5\) is greater"),
        ({"type": "integer", "minimum": 5, "maximum": 3}, r"minimum \(5\) is greater"),
        ({"enum": []}, "Unsatisfiable"),
        ({"type": "string", "pattern": "("}, "unclosed group"),
        ({"type": "string", "pattern": "^(?=a)b$"}, "look-ahead"),
        ({"type": "object", "minProperties": "x", "properties": {}}, "minProperties"),
        ({"title": "x" * 300_000}, "shorten it"),
        (chained(1000), "nests 2005 levels: at most 2000"),
        ('{"items": ' * 5000 + "{}" + "}" * 5000, "cannot be read|nests"),
    ],
)
def test_refused(schema: Any, part: str) -> None:
    with pytest.raises(PromptError, match=part) as caught:
        schema_to_grammar(schema)
    assert "JSON schema" in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("schema", "told"),
    [
        ({"type": "integer", "minimum": 1, "not": {"const": 3}}, '"not"'),
        ({"type": "array", "uniqueItems": True, "contains": {"const": 4}}, '"uniqueItems"'),
        ({"if": {}, "then": {}}, '"if"'),
        ({"type": "string", "format": "colour"}, "format: colour"),
        ({"oneOf": [{"type": "integer"}, {"type": "number"}]}, "oneOf"),
    ],
)
def test_what_is_not_enforced_is_said(
    schema: Any, told: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "haversack"):
        schema_to_grammar(schema)
    assert len(caplog.messages) == 1
    assert "does not enforce all of the schema" in caplog.messages[0] and told in caplog.messages[0]


def test_schemas_are_left_as_they_are() -> None:
    schema = {"type": "object", "properties": {"a": {}}}
    schema_to_grammar(schema)
    assert schema == {"type": "object", "properties": {"a": {}}}
