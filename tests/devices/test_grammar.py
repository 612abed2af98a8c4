"""Which tokens a grammar allows, on a small vocabulary of overlapping texts."""

import subprocess
import sys
import threading

import numpy as np
import pytest

from haversack.devices import grammar as grammar_module
from haversack.devices.errors import PromptError
from haversack.devices.grammar import Grammar, TokenTrie, check_grammar, trie_bytes

TEXTS = [
    b"",
    b"",
    b"h",
    b"he",
    b"hel",
    b"hello",
    b"l",
    b"lo",
    b"o",
    b"\xf0\x9f",
    b"\x98\x80",
    b"\xff",
    b"h",
]
END, SPECIAL = 0, 1
NEVER = TEXTS.index(b"\xff")  # no byte of UTF-8


@pytest.fixture(scope="module")
def trie() -> TokenTrie:
    return TokenTrie(TEXTS, ends=[END])


def allowed(trie: TokenTrie, grammar: str, *tokens: int) -> list[int]:
    """Return the ids that may come after `tokens`."""
    matcher = trie.matcher(Grammar(grammar))
    for token in tokens:
        matcher.accept(token)
    found = np.flatnonzero(matcher.allowed()).tolist()
    assert found == [token for token in range(len(TEXTS)) if matcher.allows(token)]
    return found


def test_every_way_to_cut_a_forced_text_is_allowed(trie: TokenTrie) -> None:
    assert allowed(trie, 'start: "hello"') == [2, 3, 4, 5, 12]
    assert allowed(trie, 'start: "hello"', 4) == [6, 7]


def test_a_text_ends_where_the_grammar_may_end(trie: TokenTrie) -> None:
    assert allowed(trie, 'start: "h" "e"?', 2) == [END]
    assert allowed(trie, 'start: "h" "l"?', 2) == [END, 6]
    assert allowed(trie, 'start: "h" "l"', 2) == [6]


def test_a_complete_text_is_told(trie: TokenTrie) -> None:
    matcher = trie.matcher(Grammar('start: "h" "l"?'))
    assert not matcher.may_end
    matcher.accept(2)
    assert matcher.may_end and not matcher.must_end
    matcher.accept(6)
    assert matcher.must_end


def test_special_tokens_and_broken_bytes_are_never_allowed(trie: TokenTrie) -> None:
    everything = allowed(trie, "start: /(?s:.)*/")
    assert SPECIAL not in everything and NEVER not in everything
    assert END in everything


def test_characters_may_be_cut_into_tokens(trie: TokenTrie) -> None:
    assert allowed(trie, 'start: "😀"') == [9]
    assert allowed(trie, 'start: "😀"', 9) == [10]


def test_a_dead_end_allows_nothing(trie: TokenTrie) -> None:
    assert allowed(trie, 'start: "x"') == []


def test_a_vocabulary_without_an_end() -> None:
    matcher = TokenTrie(TEXTS, ends=[]).matcher(Grammar('start: "h" "l"?'))
    matcher.accept(2)
    assert np.flatnonzero(matcher.allowed()).tolist() == [6]


@pytest.mark.parametrize(
    ("grammar", "message"),
    [
        ("start: other", "unknown name"),
        ('start: "a"{3,2}', "range end must be"),
        ("start: /(/", "unclosed group"),
    ],
)
def test_a_wrong_grammar_is_one_line(grammar: str, message: str, trie: TokenTrie) -> None:
    for refuses in (check_grammar, trie.matcher):
        with pytest.raises(PromptError, match=message) as caught:
            refuses(Grammar(grammar))
        assert "\n" not in str(caught.value)


def test_a_long_text_of_a_counted_pattern(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each count is a state. States that were only looked at are forgotten before they run out."""
    monkeypatch.setitem(grammar_module._LIMITS, "max_lexer_states", 2_000)
    letters = TokenTrie([bytes([byte]) for byte in range(256)], ends=[])
    matcher = letters.matcher(Grammar("start: /[a-z]{1,1200}/"))
    for _ in range(1200):
        assert matcher.allowed()[ord("q")] and matcher.allows(ord("b"))
        matcher.accept(ord("q"))
    assert matcher.must_end and not matcher.allows(ord("q"))


# Nested repetitions, and rules that can be read in very many ways.
BOMBS = [
    'start: (("a"?){100}){100} "b"',
    "start: " + "(" * 6 + '"a"?' + "){100}" * 6 + ' "b"',
    'start: A\nA: ((("a"?){100}){100}){100} "b"',
    "start: A\nA: /(([a-z]{0,50} ?){0,50}x){0,50}b/",
    "start: A\nA: /(.*a.{200}|.*b.{201}|.*c.{203})*/",
    'start: s\ns: s s s | s s | "a" | ""',
]


@pytest.mark.parametrize("grammar", BOMBS)
def test_an_exploding_grammar_goes_on_or_is_given_up(grammar: str) -> None:
    """Each step returns soon, because a caller checks between two steps whether it is cancelled."""
    letters = TokenTrie([b"a", b"aa", b"aaaa", b"b", b"c"], ends=[])
    given_up = threading.Timer(60, lambda: sys.exit("a step has no end"))
    given_up.start()
    try:
        matcher = letters.matcher(Grammar(grammar))
        for _ in range(40):
            matcher.allowed()
            if not matcher.allows(0):
                break
            matcher.accept(0)
    except PromptError as error:
        assert "simplify it" in str(error)
    finally:
        given_up.cancel()


def test_what_a_trie_takes_grows_with_its_tokens() -> None:
    assert trie_bytes(0, 0) == 0
    assert 44 << 20 <= trie_bytes(262_144, 1_965_210) < 60 << 20


def test_nothing_is_imported_without_a_grammar() -> None:
    code = "import sys, haversack.edge; assert 'llguidance' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc/self/status")
def test_a_trie_takes_no_more_than_is_said() -> None:
    """In a process of its own, whose allocator has nothing to reuse."""
    code = """
import itertools
from haversack.devices.grammar import Grammar, TokenTrie, trie_bytes
from haversack.devices.memory import anonymous_bytes
texts = [b" " * n + w for n in (0, 1) for r in range(1, 8)
         for w in map(bytes, itertools.islice(itertools.product(b"etaoinsr", repeat=r), 4000))]
TokenTrie(texts[:9], []).matcher(Grammar('start: "e"'))  # what importing takes
before = anonymous_bytes()
trie = TokenTrie(texts, [])
assert anonymous_bytes() - before <= trie_bytes(len(texts), sum(map(len, texts)))
"""
    subprocess.run([sys.executable, "-c", code], check=True)
