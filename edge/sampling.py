"""How the next token is chosen: the settings, checked, with the names of llama.cpp."""

from dataclasses import dataclass
from numbers import Integral
from typing import Any, cast

from haversack.devices.errors import PromptError
from haversack.devices.grammar import Grammar
from haversack.edge.lark import gbnf_to_grammar
from haversack.edge.schema import schema_to_grammar

MIN_TEMPERATURE = 1e-6  # below, logits divided by it overflow
MAX_LOGPROBS = 100
WINDOW_FIRST_TOKENS = 64  # that a window keeps: with fewer than 4, texts fall apart (LM-Infinite)
MAX_SEED = 0xFFFF_FFFE  # llama.cpp takes the next number for "random"


@dataclass(frozen=True)
class Sampling:
    """Settings of one generation; `PromptError` names the first one out of range.

    0 turns off `top_k`, `min_p` and the two additive penalties; 1 turns off `top_p` and
    `repeat_penalty`. Penalties count the last `repeat_last_n` tokens of prompt and text, -1 all in
    the context. `seed` -1 is a random one; with any other the text is the same whatever was
    computed before, so less of a prompt that is held already is used again. The text ends before a
    `stop` string, which may hold special tokens. `grammar` is GBNF with a rule named `root`;
    `json_schema` is a JSON Schema, as text or as a dict. `logprobs` keeps with each token the
    probabilities of that many likeliest ones, see `Generation.logprobs`. `marks` are special tokens
    that the text shows. Where the context is full, a text with `keep_first` goes on from that many
    of its first tokens and the recent half of the others; with 0 it ends.
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
    logprobs: int | None = None
    marks: tuple[str, ...] = ()
    keep_first: int = 0

    def __post_init__(self) -> None:
        self._check("temperature", 0, 100)
        if 0 < self.temperature < MIN_TEMPERATURE:
            raise PromptError(
                f"temperature is {self.temperature!r}: give 0, or {MIN_TEMPERATURE:g} or more"
            )
        self._check("top_k", 0, 1 << 30, whole=True)
        self._check("top_p", 1e-6, 1)
        self._check("min_p", 0, 1)
        self._check("repeat_penalty", 1e-6, 100)
        self._check("repeat_last_n", -1, 1 << 30, whole=True)
        self._check("frequency_penalty", -100, 100)
        self._check("presence_penalty", -100, 100)
        self._check("seed", -1, MAX_SEED, whole=True)
        self._check("keep_first", 0, 1 << 30, whole=True)
        if self.has_penalties and self.repeat_last_n == 0:
            raise PromptError(
                "repeat_last_n is 0, so penalties look at no token: give the number of tokens, -1"
                " for the whole context, or leave the penalties out"
            )
        if self.logprobs is not None:
            self._check("logprobs", 0, MAX_LOGPROBS, whole=True)
        _check_texts("stop", self.stop)
        _check_texts("marks", self.marks)
        _check_text("grammar", self.grammar)
        if self.grammar is not None and self.json_schema is not None:
            raise PromptError("both grammar and json_schema are given: give one of them")
        self.constraint()

    @property
    def greedy(self) -> bool:
        """Whether the likeliest token is taken every time."""
        return self.temperature == 0

    def constraint(self) -> Grammar | None:
        """The grammar that the text must follow, or None."""
        if self.grammar is not None:
            return gbnf_to_grammar(self.grammar)
        return None if self.json_schema is None else schema_to_grammar(self.json_schema)

    @property
    def has_penalties(self) -> bool:
        """Whether tokens that were there before become less likely."""
        penalties = (self.repeat_penalty, self.frequency_penalty, self.presence_penalty)
        return penalties != (1, 0, 0)

    def _check(self, name: str, low: float, high: float, *, whole: bool = False) -> None:
        value = getattr(self, name)
        kinds, kind_name = ((int,), "a whole number") if whole else ((int, float), "a number")
        if isinstance(value, bool) or not isinstance(value, kinds):
            raise PromptError(f"{name} is {value!r}: give {kind_name}")
        if not low <= value <= high:
            raise PromptError(f"{name} is {value!r}: give {kind_name} from {low} to {high}")


def check_seed(seed: object) -> None:
    """Raise PromptError unless `seed` is a whole number, or None, which means any."""
    if seed is not None and (isinstance(seed, bool) or not isinstance(seed, Integral)):
        raise PromptError(f"seed is {seed!r}: give a whole number, or None for any")


def _check_text(name: str, text: object) -> None:
    if not isinstance(text, str | None):
        raise PromptError(f"{name} is a {type(text).__name__}: give text")


def _check_texts(name: str, given: object) -> None:
    texts = cast(tuple[object, ...], given) if isinstance(given, tuple) else (None,)
    if not all(isinstance(text, str) for text in texts):
        raise PromptError(f"{name} is {given!r}: give a tuple of non-empty strings")
    if "" in texts:
        raise PromptError(f"{name} has an empty text, which is everywhere: give one that is not")
    for text in cast(tuple[str, ...], texts):
        try:
            text.encode()
        except UnicodeEncodeError:
            raise PromptError(f"{name} has {text!r}, which is not valid Unicode") from None
