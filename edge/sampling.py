"""How the next token is chosen: the settings, checked, with the names of llama.cpp."""

import math
from dataclasses import dataclass
from typing import Any, cast

from haversack.devices.errors import PromptError
from haversack.edge.schema import check_grammar, schema_to_gbnf

MAX_SEED = 0xFFFF_FFFE  # llama.cpp takes the next number for "random"


@dataclass(frozen=True)
class Sampling:
    """Settings of one generation; `PromptError` names the first one out of range.

    0 turns off `top_k`, `min_p`, `repeat_last_n` and the two additive penalties; 1 turns off
    `top_p` and `repeat_penalty`; `repeat_last_n` -1 is the whole context, `seed` -1 a random one.
    The text ends before a `stop` string. `grammar` is GBNF with a rule named `root`;
    `json_schema` is a JSON Schema, as text or as a dict.
    """

    temperature: float = 0.8
    top_k: int = 40
    top_p: float = 0.95
    min_p: float = 0.05
    repeat_penalty: float = 1.0
    repeat_last_n: int = 64
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    seed: int = -1
    stop: tuple[str, ...] = ()
    grammar: str | None = None
    json_schema: str | dict[str, Any] | None = None

    def __post_init__(self) -> None:
        self._check("temperature", 0, 100)
        self._check("top_k", 0, 1 << 30, whole=True)
        self._check("top_p", 1e-6, 1)
        self._check("min_p", 0, 1)
        self._check("repeat_penalty", 1e-6, 100)
        self._check("repeat_last_n", -1, 1 << 30, whole=True)
        self._check("frequency_penalty", -100, 100)
        self._check("presence_penalty", -100, 100)
        self._check("seed", -1, MAX_SEED, whole=True)
        _check_stop(self.stop)
        if self.grammar is not None and self.json_schema is not None:
            raise PromptError("both grammar and json_schema are given: give one of them")
        if self.grammar is not None:
            check_grammar(self.grammar)
        self.gbnf()

    @property
    def greedy(self) -> bool:
        """Whether the likeliest token is taken every time."""
        return self.temperature == 0

    def gbnf(self) -> str | None:
        """The grammar that the text must follow, in GBNF, or None."""
        if self.json_schema is None:
            return self.grammar
        return schema_to_gbnf(self.json_schema)

    def _check(self, name: str, low: float, high: float, *, whole: bool = False) -> None:
        value = getattr(self, name)
        kinds, kind_name = ((int,), "a whole number") if whole else ((int, float), "a number")
        if isinstance(value, bool) or not isinstance(value, kinds):
            raise PromptError(f"{name} is {value!r}: give {kind_name}")
        if not (math.isfinite(value) and low <= value <= high):
            raise PromptError(f"{name} is {value!r}: give {kind_name} from {low:g} to {high:g}")


def _check_stop(stop: object) -> None:
    texts = cast(tuple[object, ...], stop) if isinstance(stop, tuple) else ("",)
    if not all(isinstance(text, str) and text for text in texts):
        raise PromptError(f"stop is {stop!r}: give a tuple of non-empty strings")
