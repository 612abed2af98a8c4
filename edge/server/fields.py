"""The fields of a request's body, each checked when it is read."""

import json
from collections.abc import Callable, Sequence
from typing import Any, NoReturn, TypeVar, cast

from haversack.edge.server.errors import ApiError, bad_request

Kind = TypeVar("Kind")
Object = dict[str, Any]

_MOST_SHOWN = 40  # characters of a wrong value


def parsed_body(data: bytes) -> "Fields":
    """Read a body of JSON. Raises ApiError."""
    try:
        value = json.loads(data.decode(), parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:  # among them bytes that are no UTF-8
        raise bad_request(f"the body is no JSON: {error}", "invalid_json") from None
    if not isinstance(value, dict):
        raise bad_request("the body is no JSON object: give one", "invalid_json")
    return Fields(cast(Object, value))


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number of JSON")


class Fields:
    """An object of a request. Reading a field of another kind raises ApiError, which names it; null
    counts as absent. Fields that nobody reads are left alone, because clients send those of other
    servers."""

    def __init__(self, values: Object, where: str = "") -> None:
        self.values, self._where = values, where

    def name_of(self, name: str) -> str:
        return f"{self._where}{name}"

    def refuse(self, name: str, wanted: str) -> ApiError:
        """The error for a field that is not what is `wanted`."""
        if self.values.get(name) is None:
            return bad_request(f"{self.name_of(name)} is missing: give {wanted}", "missing_field")
        shown = repr(self.values[name])
        shown = shown if len(shown) <= _MOST_SHOWN else shown[:_MOST_SHOWN] + "..."
        return bad_request(f"{self.name_of(name)} is {shown}: give {wanted}")

    def get(self, name: str, kind: type[Kind], wanted: str) -> Kind | None:
        """A field of a kind, None if it is absent."""
        value = self.values.get(name)
        if value is None:
            return None
        if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
            raise self.refuse(name, wanted)
        return value

    def need(self, name: str, kind: type[Kind], wanted: str) -> Kind:
        value = self.get(name, kind, wanted)
        if value is None:
            raise self.refuse(name, wanted)
        return value

    def text(self, name: str) -> str | None:
        return self.get(name, str, "text")

    def flag(self, name: str) -> bool:
        return bool(self.get(name, bool, "true or false"))

    def count(self, name: str) -> int | None:
        """A whole number, 0 or more."""
        value = self.get(name, int, "a whole number, 0 or more")
        if value is not None and not 0 <= value < 1 << 31:
            raise self.refuse(name, "a whole number, 0 or more, below 2**31")
        return value

    def number(self, name: str) -> float | None:
        value = self.values.get(name)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise self.refuse(name, "a number")
        if abs(value) > 1 << 53:
            raise self.refuse(name, "a number below 2**53")
        return value

    def object(self, name: str) -> "Fields | None":
        value = cast(Object | None, self.get(name, dict, "an object"))
        return None if value is None else Fields(value, f"{self.name_of(name)}.")

    def need_object(self, name: str) -> "Fields":
        found = self.object(name)
        if found is None:
            raise self.refuse(name, "an object")
        return found

    def texts(self, name: str) -> tuple[str, ...]:
        """A text, or a list of texts."""
        value = self.values.get(name)
        if value is None:
            return ()
        listed: Sequence[Any] = value if isinstance(value, list) else [value]
        if not all(isinstance(text, str) for text in listed):
            raise self.refuse(name, "text or a list of texts")
        return tuple(listed)

    def objects(self, name: str) -> list["Fields"]:
        """A list of objects, empty if it is absent."""
        values = cast(list[Any], self.get(name, list, "a list of objects") or [])
        if not all(isinstance(value, dict) for value in values):
            raise self.refuse(name, "a list of objects")
        return [Fields(value, f"{self.name_of(name)}[{i}].") for i, value in enumerate(values)]

    def one_of(self, name: str, known: dict[str, Callable[["Fields"], Kind]]) -> Kind:
        """What the reader of the kind that the field names makes of this object."""
        kind = self.need(name, str, "text")
        if kind not in known:
            raise self.refuse(name, f"one of {', '.join(known)}")
        return known[kind](self)
