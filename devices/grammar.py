"""Grammars: llguidance computes which tokens may come next.

llguidance is imported with the first grammar, so that a chat without one starts as fast as before.
`edge.schema` and `edge.lark` write the grammars.
"""

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt

from haversack.devices.errors import PromptError

# llguidance takes a token that begins with this byte for no text. UTF-8 has no such byte.
_NO_TEXT = b"\xff"
_TOO_MANY_STATES = "too many states"  # its error where `max_lexer_states` is reached
_DEAD_END = "NoExtensionBias"  # llguidance's error where no token may come next
# Without `no_forcing`, llguidance allows only one way to cut text that the grammar forces.
_HEADER = '%llguidance {"no_forcing": true}\n'

# What one step may cost, so that a call can be cancelled within a second. `max_lexer_states` bounds
# the memory of a matcher, at half a KiB a state; see `GrammarMatcher._renewed`.
_LIMITS = {
    "step_lexer_fuel": 1_000_000,
    "step_max_items": 1_000_000,
    "max_lexer_states": 32_768,
    "verbose_errors": False,
}
# Measured while a trie is built: 49,152 tokens with 0.3 MiB of text take 7.6 MiB, 262,144 tokens
# with 2.0 MiB take 44 MiB; after that two thirds of it. Rounded up.
_TOKEN_BYTES, _TEXT_FACTOR = 88, 16


def trie_bytes(num_tokens: int, text_bytes: int) -> int:
    """Return the most memory that a `TokenTrie` of `num_tokens` with `text_bytes` of text takes."""
    return _TOKEN_BYTES * num_tokens + _TEXT_FACTOR * text_bytes


@dataclass(frozen=True)
class Grammar:
    """A grammar in llguidance's dialect of Lark. At one place of a text, at most `max_readings`
    readings of what may follow are looked at: a step's time grows with their square."""

    lark: str
    max_readings: int = 1000

    def parts(self) -> dict[str, Any]:
        """Return the arguments that llguidance takes."""
        limits = _llguidance().LLParserLimits(max_items_in_row=self.max_readings, **_LIMITS)
        return {"grammar": _HEADER + self.lark, "limits": limits}


def check_grammar(grammar: Grammar) -> list[str]:
    """Return warnings about parts of `grammar` that are not enforced. Raises PromptError if it is
    wrong."""
    failed, messages = _llguidance().LLMatcher.validate_grammar_with_warnings(**grammar.parts())
    if failed:
        raise PromptError(_reason(messages[0]))
    return list(messages)


class TokenTrie:
    """The texts of a vocabulary's tokens, ordered for grammars; building it takes about a second
    for 262,144 tokens.

    `texts` holds what each token adds to the text, empty for special tokens, which no grammar ever
    allows. `ends` are the ids that end a generation.
    """

    def __init__(self, texts: Sequence[bytes], ends: Collection[int]) -> None:
        self.num_tokens, self.ends = len(texts), frozenset(ends)
        wrapper = _Tokens(texts, self.ends)
        self._tokenizer: Any = _llguidance().LLTokenizer(wrapper, slices=[])

    def matcher(self, grammar: Grammar) -> "GrammarMatcher":
        """Return a matcher for one text. Raises PromptError if the grammar is wrong."""
        return GrammarMatcher(self, self._tokenizer, grammar)


class _Tokens(Sequence[bytes]):
    """The tokenizer that llguidance asks for texts. It gives them one by one, so that no list of
    them is kept beside the trie."""

    is_tokenizer_wrapper = True
    bos_token_id = None
    eos_token_id = None  # llguidance adds a token of its own: `GrammarMatcher` knows the ends
    special_token_ids: Sequence[int] = ()

    def __init__(self, texts: Sequence[bytes], ends: Collection[int]) -> None:
        self._texts, self._ends = texts, ends

    @property
    def tokens(self) -> Sequence[bytes]:
        return self

    def __len__(self) -> int:
        return len(self._texts)

    def __getitem__(self, token: Any) -> Any:
        text = self._texts[token]
        return b"" if token in self._ends or text.startswith(_NO_TEXT) else text

    def __call__(self, text: bytes) -> list[int]:
        """Return no ids: llguidance needs them only to force tokens, which `_HEADER` turns off."""
        return []


class GrammarMatcher:
    """Follows one text token by token, and says which tokens may come next."""

    def __init__(self, trie: TokenTrie, tokenizer: Any, grammar: Grammar) -> None:
        self._trie, self._tokenizer, self._grammar = trie, tokenizer, grammar
        self._tokens: list[int] = []
        self._matcher: Any = None
        self._begin()

    @property
    def may_end(self) -> bool:
        """Return whether the text so far is complete."""
        return bool(self._matcher.is_accepting())

    @property
    def must_end(self) -> bool:
        """Return whether nothing can be added to the text."""
        return bool(self._matcher.is_stopped()) and self.may_end

    def allows(self, token: int) -> bool:
        """Return whether `token` may come next; takes some microseconds."""
        if token in self._trie.ends:
            return self.may_end
        matches = self._matcher.validate_tokens([token])
        if self._renewed():
            matches = self._matcher.validate_tokens([token])
        return bool(matches == 1)

    def allowed(self) -> npt.NDArray[np.bool_]:
        """Return which tokens may come next, (vocabulary,): none if the grammar has a dead end.

        Takes up to some milliseconds. Raises PromptError if the grammar is too complex here.
        """
        allowed = self._mask()
        if self._renewed():
            allowed = self._mask()
        self._refuse_errors()
        allowed[list(self._trie.ends)] = self.may_end
        return allowed

    def accept(self, token: int) -> None:
        """Add `token`, which must be an allowed one, to the text."""
        if token not in self._trie.ends:
            self._matcher.consume_token(token)
            if self._renewed():
                self._matcher.consume_token(token)
            self._refuse_errors()
            self._tokens.append(token)

    def _mask(self) -> npt.NDArray[np.bool_]:
        num_tokens = self._trie.num_tokens
        if self._matcher.is_stopped():
            return np.zeros(num_tokens, np.bool_)
        bits = np.frombuffer(self._matcher.compute_bitmask(), np.uint8)
        return np.unpackbits(bits, count=num_tokens, bitorder="little").view(np.bool_)

    def _begin(self) -> None:
        matcher_of = _llguidance().LLMatcher
        self._matcher = matcher_of(self._tokenizer, log_level=0, **self._grammar.parts())
        self._refuse_errors()

    def _renewed(self) -> bool:
        """Read the text so far again if the states are used up. Return whether that was done.

        llguidance also keeps the states of tokens that were only looked at, so states run out.
        """
        if _TOO_MANY_STATES not in self._matcher.get_error():
            return False
        self._begin()
        self._matcher.consume_tokens(self._tokens)
        return True

    def _refuse_errors(self) -> None:
        error = self._matcher.get_error()
        if error and not error.startswith(_DEAD_END):
            raise PromptError(_reason(error))


def _reason(message: str) -> str:
    """Return llguidance's error in one line, without a position, because the user did not write
    that text."""
    lines = message.replace("<non-verbose/>", "").split("\n   1 | ")[0].splitlines()
    told = re.sub(r"^at \d+\(\d+\): ", "", " ".join(line.strip() for line in lines if line.strip()))
    told = told.removeprefix("failed to compile JSON schema: ")
    return f"the grammar cannot be followed: {told}; simplify it"


def _llguidance() -> ModuleType:
    import llguidance

    return llguidance
