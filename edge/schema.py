"""Translating a JSON Schema to a grammar that the text follows.

llguidance reads the schema itself. This file decides what a schema leaves open. An object has only
the properties that are listed. White space is short, because small models otherwise write it for
ever. A schema that would overflow llguidance's stack is refused.
"""

import functools
import json
import logging
from dataclasses import dataclass, replace
from typing import Any, cast

from haversack.devices.errors import PromptError
from haversack.devices.grammar import Grammar, check_grammar
from haversack.edge.text import without_mark

MAX_SCHEMA_CHARS = 1 << 18
MAX_DEPTH = 2000  # of all definitions together; llguidance follows references on the stack
_READINGS = 4000  # enough for an object of a thousand optional properties
_OPTIONS = {
    "whitespace_pattern": r"[ ]|\n[ \t]{0,20}",  # at most one of these in one place
    "lenient": True,  # warn about keywords that are not enforced
}

# Keywords that do not restrict the text.
_NOTES = frozenset(
    """
    title description default examples deprecated readOnly writeOnly $schema $id $comment $defs
    definitions
    """.split()
)
# Where a schema has only these keywords about an object, other properties are forbidden.
_PLAIN_OBJECT = _NOTES | {"type", "properties", "required", "minProperties", "maxProperties"}
# Schemas below these apply together with those beside them, so forbidding properties in one
# would contradict the others.
_TOGETHER = frozenset(["allOf", "if", "then", "else", "not", "dependentSchemas"])
_CHOICES = frozenset(["anyOf", "oneOf"])
_NAMED = frozenset(["properties", "patternProperties", "dependentSchemas"])
_DEFINITIONS = frozenset(["$defs", "definitions"])
_DATA = frozenset(["const", "enum", "default", "examples"])  # their values are no schemas

_log = logging.getLogger("haversack")


def schema_to_grammar(schema: str | dict[str, Any]) -> Grammar:
    """Return a grammar for JSON that follows `schema`.

    Keywords that cannot be enforced, such as `not`, are logged as a warning. Raises `PromptError`
    for a schema that is wrong or cannot be satisfied.
    """
    try:
        read = json.loads(without_mark(schema)) if isinstance(schema, str) else schema
        if not isinstance(read, dict):
            raise ValueError("it is not a JSON object")
        text = json.dumps(read, ensure_ascii=False, allow_nan=False)
        text.encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise PromptError(f"the JSON schema cannot be read: {error}") from error
    if len(text) > MAX_SCHEMA_CHARS:
        raise PromptError(f"the JSON schema has over {MAX_SCHEMA_CHARS} characters: shorten it")
    return _converted(text)


@functools.lru_cache(maxsize=16)
def _converted(text: str) -> Grammar:
    schema: dict[str, Any] = json.loads(text)
    depth = _depth(schema) + sum(_depth(target) for target in _definitions(schema))
    if depth > MAX_DEPTH:
        raise PromptError(f"the JSON schema nests {depth} levels: at most {MAX_DEPTH}")
    _close_objects(schema)
    schema["x-guidance"] = _OPTIONS
    lark = f"start: %json {json.dumps(schema, ensure_ascii=False)}"
    grammar = Grammar(lark, max_readings=_READINGS)
    try:
        warnings = check_grammar(grammar)
    except PromptError as error:
        reason = str(error).removeprefix("the grammar cannot be followed: ")
        raise PromptError(f"the JSON schema cannot be followed: {reason}") from None
    for warning in warnings:
        _log.warning("the grammar does not enforce all of the schema: %s", warning)
    return grammar


def _depth(schema: object) -> int:
    """Return how deep the objects of a schema are nested."""
    deepest, todo = 0, [(schema, 0)]
    while todo:
        node, depth = todo.pop()
        depth += isinstance(node, dict)
        deepest = max(deepest, depth)
        todo.extend((child, depth) for child in _children(node))
    return deepest


def _children(node: object) -> list[object]:
    if isinstance(node, dict):
        return list(cast(dict[str, object], node).values())
    return list(cast(list[object], node)) if isinstance(node, list) else []


def _definitions(schema: dict[str, Any]) -> list[object]:
    named = (schema.get(key) for key in _DEFINITIONS)
    return [child for group in named if isinstance(group, dict) for child in _children(group)]


# --------------------------------------------------------------------- objects
@dataclass(frozen=True)
class _Place:
    """Where a schema stands: in which definition, and whether it alone describes its part of the
    text or other schemas describe it too."""

    definition: str = "#"
    alone: bool = True

    def below(self, alone: bool) -> "_Place":
        return replace(self, alone=self.alone and alone)


def _close_objects(schema: dict[str, Any]) -> None:
    """Forbid properties that are not listed, wherever that contradicts no other schema."""
    plain: list[tuple[dict[str, Any], str]] = []
    references: list[tuple[str, str]] = []  # (from which definition, to which)
    together: set[str] = set()  # definitions that apply together with something else
    todo: list[tuple[object, _Place]] = [(schema, _Place())]
    while todo:
        node, place = todo.pop()
        if isinstance(node, list):
            todo.extend((item, place) for item in cast(list[object], node))
        elif isinstance(node, dict):
            pairs = cast(dict[str, Any], node)
            if place.alone and _is_plain_object(pairs):
                plain.append((pairs, place.definition))
            if isinstance(pairs.get("$ref"), str):
                references.append((place.definition, pairs["$ref"]))
                if not place.alone or pairs.keys() - _NOTES != {"$ref"}:
                    together.add(pairs["$ref"])
            todo.extend(_schemas_in(pairs, place))
    _spread(together, references)
    for pairs, definition in plain:
        if definition not in together:
            pairs["additionalProperties"] = False


def _is_plain_object(node: dict[str, Any]) -> bool:
    properties, required = node.get("properties"), node.get("required", [])
    if not isinstance(properties, dict) or not isinstance(required, list):
        return False
    names = cast(dict[str, object], properties).keys()
    if not set(map(str, cast(list[object], required))) <= names:
        return False
    least = node.get("minProperties", 0)
    return isinstance(least, int) and least <= len(names) and node.keys() <= _PLAIN_OBJECT


def _schemas_in(node: dict[str, Any], place: _Place) -> list[tuple[object, _Place]]:
    """Return the schemas directly in a schema, and their places."""
    found: list[tuple[object, _Place]] = []
    for key, value in node.items():
        if key in _DATA:
            continue
        children = cast(dict[str, object], value) if isinstance(value, dict) else {}
        if key in _DEFINITIONS:
            found += [(child, _Place(f"#/{key}/{name}")) for name, child in children.items()]
        elif key in _NAMED and isinstance(value, dict):
            found += [(child, place.below(key not in _TOGETHER)) for child in children.values()]
        else:
            bare = node.keys() - _NOTES <= {key, "type"}
            found.append((value, place.below(bare if key in _CHOICES else key not in _TOGETHER)))
    return found


def _spread(together: set[str], references: list[tuple[str, str]]) -> None:
    """Add the definitions that the definitions in `together` refer to."""
    todo = list(together)
    while todo:
        definition = todo.pop()
        new = {to for origin, to in references if origin == definition} - together
        together |= new
        todo += new
