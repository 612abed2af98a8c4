"""Translating GBNF to the dialect of Lark that llguidance follows.

GBNF matches character by character. llguidance cuts the text into lexemes, the longest pieces that
its terminals match, and never goes back. A grammar whose rules do not refer to themselves becomes
one terminal, which matches the same texts. `edge.lexemes` chooses the lexemes of other grammars.
"""

import functools

from haversack.devices.errors import PromptError
from haversack.devices.grammar import Grammar, check_grammar
from haversack.edge.gbnf import (
    LAST_CHAR,
    Alt,
    Char,
    Node,
    Ref,
    Repeat,
    Rules,
    Seq,
    Text,
    parse_gbnf,
    references,
)
from haversack.edge.lexemes import is_lexeme, with_lexemes

_MAX_CHAIN = 500  # of rules that refer to each other: llguidance follows them on its stack


@functools.lru_cache(maxsize=16)
def gbnf_to_grammar(gbnf: str) -> Grammar:
    """Return a grammar for the texts that the rule `root` of `gbnf` matches. Raises PromptError."""
    rules = parse_gbnf(gbnf)
    order, recursive = _used(rules)
    used = {name: rules[name] for name in order}
    lark = _written(with_lexemes(used), "r") if recursive else "start: R0\n" + _written(used, "R")
    grammar = Grammar(lark)
    check_grammar(grammar)
    return grammar


def _used(rules: Rules) -> tuple[list[str], bool]:
    """Return the rules that `root` needs, `root` first, and whether any of them refers to
    itself."""
    order, recursive = ["root"], False
    path: list[str] = ["root"]
    on_path, seen = {"root"}, {"root"}
    todo = [iter(list(references(rules["root"])))]
    while todo:
        name = next(todo[-1], None)
        if name is None:
            todo.pop()
            on_path.discard(path.pop())
        elif name in on_path:
            recursive = True
        elif name not in seen:
            seen.add(name)
            on_path.add(name)
            order.append(name)
            path.append(name)
            todo.append(iter(list(references(rules[name]))))
            if len(path) > _MAX_CHAIN:
                raise PromptError(
                    f"the grammar has {len(path)} rules that refer to each other in a chain: at"
                    f" most {_MAX_CHAIN}"
                )
    return order, recursive


def _written(rules: Rules, letter: str) -> str:
    """Return the rules in Lark, as terminals if `letter` is a capital; else the first one is
    `start`."""
    names = {name: f"{letter}{idx}" for idx, name in enumerate(rules)}
    if letter.islower():
        names[next(iter(rules))] = "start"
    return "".join(f"{names[name]}: {_lark(node, names)}\n" for name, node in rules.items())


def _lark(node: Node, names: dict[str, str]) -> str:
    if isinstance(node, Ref):
        return names[node.name]
    if isinstance(node, Seq):
        return " ".join(_inner(part, names) for part in node.parts) or '""'
    if isinstance(node, Alt):
        return " | ".join(_inner(choice, names) for choice in node.choices)
    if isinstance(node, Repeat) and not is_lexeme(node):
        return _inner(node.part, names) + _counts(node)
    return f"/{_regex(node)}/"


def _inner(node: Node, names: dict[str, str]) -> str:
    text = _lark(node, names)
    return text if isinstance(node, Ref) or is_lexeme(node) else f"({text})"


def _regex(node: Node) -> str:
    if isinstance(node, Text):
        return "".join(map(_escaped, map(ord, node.text)))
    if isinstance(node, Char):
        inside = (f"{_escaped(first)}-{_escaped(last)}" for first, last in node.ranges)
        return f"[{''.join(inside)}]" if node.ranges else f"[^{_escaped(0)}-{_escaped(LAST_CHAR)}]"
    assert isinstance(node, Repeat)
    return _regex(node.part) + _counts(node)


def _escaped(code: int) -> str:
    char = chr(code)
    return char if char.isascii() and char.isalnum() else f"\\x{{{code:x}}}"


def _counts(node: Repeat) -> str:
    short: dict[tuple[int, int | None], str] = {(0, None): "*", (1, None): "+", (0, 1): "?"}
    most = "" if node.most is None else node.most
    return short.get((node.least, node.most)) or f"{{{node.least},{most}}}"
