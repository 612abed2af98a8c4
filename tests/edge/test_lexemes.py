"""Grammars match what their characters say, however llguidance cuts the text: compared with a
reference that tries every way to read it."""

import itertools
from collections.abc import Iterator

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from haversack.devices.errors import PromptError
from haversack.devices.grammar import Grammar, TokenTrie
from haversack.edge.gbnf import Alt, Char, Node, Ref, Repeat, Rules, Seq, Text, parse_gbnf
from haversack.edge.lark import gbnf_to_grammar

LETTERS = "abc"
TEXTS = ["".join(letters) for n in range(5) for letters in itertools.product("ab", repeat=n)]
BYTES = TokenTrie([bytes([byte]) for byte in range(256)], ends=[])

literals = st.text(LETTERS, min_size=1, max_size=3).map(lambda text: f'"{text}"')
sets = st.sampled_from(["[a]", "[ab]", "[^b]", "[b-c]", "."])
references = st.sampled_from(["root", "other"])
counts = st.sampled_from(["*", "+", "?", "{2}", "{1,2}", "{2,}", "{0}", "{0,2}"])


def compound(inner: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    return st.one_of(
        st.lists(inner, min_size=1, max_size=3).map(" ".join),
        st.lists(inner, min_size=1, max_size=3).map(lambda parts: f"({' | '.join(parts)})"),
        st.tuples(inner, counts).map(lambda both: f"({both[0]}){both[1]}"),
    )


bodies = st.recursive(st.one_of(literals, sets, references), compound, max_leaves=6)


class Reference:
    """Reads a text by the rules in every way there is."""

    def __init__(self, rules: Rules, text: str) -> None:
        self._rules, self._text = rules, text
        self._ends: dict[tuple[str, int], frozenset[int]] = {}
        before = None
        while before != self._ends:  # rules that refer to themselves find more in each round
            before = dict(self._ends)
            for name, start in itertools.product(rules, range(len(text) + 1)):
                self._ends[name, start] = frozenset(self._read(rules[name], start))

    def matches(self) -> bool:
        return len(self._text) in self._ends["root", 0]

    def _read(self, node: Node, start: int) -> set[int]:
        """Where a reading of `node` from `start` may end."""
        if isinstance(node, Text):
            return {start + len(node.text)} if self._text.startswith(node.text, start) else set()
        if isinstance(node, Char):
            char = self._text[start : start + 1]
            holds = char and any(low <= ord(char) <= high for low, high in node.ranges)
            return {start + 1} if holds else set()
        if isinstance(node, Ref):
            return set(self._ends.get((node.name, start), ()))
        if isinstance(node, Alt):
            return {end for choice in node.choices for end in self._read(choice, start)}
        if isinstance(node, Seq):
            return self._read_all(list(node.parts), {start})
        return set(self._read_again(node, start))

    def _read_all(self, parts: list[Node], starts: set[int]) -> set[int]:
        for part in parts:
            starts = {end for start in starts for end in self._read(part, start)}
        return starts

    def _read_again(self, node: Repeat, start: int) -> Iterator[int]:
        ends = {start}
        most = node.least + len(self._text) if node.most is None else node.most
        for count in range(most + 1):
            if count >= node.least:
                yield from ends
            ends = {end for begin in ends for end in self._read(node.part, begin)}


def accepts(grammar: Grammar, text: str) -> bool:
    """Whether `text` is a whole text of the grammar, read byte by byte."""
    matcher = BYTES.matcher(grammar)
    for byte in text.encode():
        if not matcher.allows(byte):
            return False
        assert matcher.allowed()[byte]
        matcher.accept(byte)
    return matcher.may_end


@pytest.mark.slow
@settings(deadline=None, max_examples=150)
@given(root=bodies, other=bodies)
@example(root='[a]* "ab" | "b" root', other='"a"')  # a run must not take what a string needs
@example(root='"ab" "c" | [a] "ba" | "c" root', other='"a"')
@example(root='([a] | "ab")* "ab" | "(" root ")"', other='"a"')
@example(root='(([a])+){2} | "b" root', other='"a"')
@example(root='([ab]{1,2}) ([b]{2}) root | "c"', other='"a"')
@example(root='root "a" | "b"', other='"a"')
@example(root='"a" root "b" | ""', other='"a"')
def test_every_way_to_read_a_text_counts(root: str, other: str) -> None:
    gbnf = f"root ::= {root}\nother ::= {other}"
    rules, grammar = parse_gbnf(gbnf), gbnf_to_grammar(gbnf)
    for text in TEXTS:
        assert accepts(grammar, text) == Reference(rules, text).matches(), (gbnf, text)


JSON = r"""
root ::= object
value ::= object | array | string | number | ("true" | "false" | "null") ws
object ::= "{" ws ( string ":" ws value ("," ws string ":" ws value)* )? "}" ws
array ::= "[" ws ( value ("," ws value)* )? "]" ws
string ::= "\"" ( [^"\\\x7F\x00-\x1F] | "\\" (["\\bfnrt] | "u" [0-9a-fA-F]{4}) )* "\"" ws
number ::= ("-"? ([0-9] | [1-9] [0-9]{0,15})) ("." [0-9]+)? ([eE] [-+]? [0-9] [1-9]{0,15})? ws
ws ::= | " " | "\n" [ \t]{0,20}
"""


@pytest.mark.parametrize(
    ("text", "right"),
    [
        ('{"a": [1, -2.5e3, "x\\n\\u00e9", {}], "é😀": null}', True),
        ('{"a": 1', False),
        ('{"a": 01}', False),
        ('{"a": "x\ny"}', False),
        ("{ }", True),
    ],
)
def test_the_grammar_that_everybody_copies(text: str, right: bool) -> None:
    assert accepts(gbnf_to_grammar(JSON), text) == right


def test_runs_stay_whole_where_nothing_is_lost() -> None:
    """Or strings would be looked through character by character."""
    assert r"\x{80}-\x{10ffff}]+/" in gbnf_to_grammar(JSON).lark


def test_a_huge_grammar_that_refers_to_itself_is_refused() -> None:
    choices = " | ".join(f'"w{number}"' for number in range(5000))
    with pytest.raises(PromptError, match="over 3000 strings"):
        gbnf_to_grammar(f"root ::= {choices} | root root")
    gbnf_to_grammar(f"root ::= {choices}")  # one terminal, whatever its size
