"""Choosing the lexemes of grammars whose rules refer to themselves.

llguidance always reads the longest lexeme that may come next and never goes back to a shorter one.
Lexemes of one character each are always right, but slow. So strings, and runs of characters of one
set, stay whole, except where a longer lexeme would hide the right reading: if a shorter one may
stand in the same place and the text may go on with the same character, the longer one is cut into
characters.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import TypeAlias

from haversack.devices.errors import PromptError
from haversack.edge.gbnf import (
    Alt,
    Char,
    Node,
    Ranges,
    Ref,
    Repeat,
    Rules,
    Seq,
    Text,
    children,
    normal,
)

_MAX_LEXEMES = 3000
_MAX_PAIRS = 300_000  # of lexemes that may stand in one place and are compared
_MAX_INLINED = 60  # nodes of a rule that may be copied into a repetition
_MAX_ROUNDS = 8

Lexeme: TypeAlias = Text | Char | Repeat  # a Repeat is one of a character, at least once


def with_lexemes(rules: Rules) -> Rules:
    """Return the same rules, the start first, in which every string, character and run of
    characters may be a lexeme. Raises PromptError if there are too many."""
    rules = {name: _with_runs(node, rules) for name, node in rules.items()}
    for _ in range(_MAX_ROUNDS):
        cut = _Readings(rules).misread()
        if not cut:
            break
        rules = _cut(rules, cut)
    return rules


# ------------------------------------------------------------------------ tree
def is_lexeme(node: Node) -> bool:
    """Return whether `node` is one lexeme: a string, a character, or a repetition of a
    character."""
    return isinstance(node, Text | Char) or (
        isinstance(node, Repeat) and isinstance(node.part, Char)
    )


def _with_runs(node: Node, rules: Rules) -> Node:
    """Return the rule with repeated sets as runs that are not empty: ([a] | "bc")* becomes ([a]+ |
    "bc")*, which matches the same texts."""
    if isinstance(node, Seq):
        return Seq(tuple(_with_runs(part, rules) for part in node.parts))
    if isinstance(node, Alt):
        return Alt(tuple(_with_runs(choice, rules) for choice in node.choices))
    if not isinstance(node, Repeat):
        return node
    part = _with_runs(_inlined(node.part, rules), rules)
    if isinstance(part, Char):
        return _run(part, node.least, node.most)
    if node.most is None and node.least <= 1 and isinstance(part, Alt):
        part = Alt(tuple(_run(c, 1, None) if isinstance(c, Char) else c for c in part.choices))
    return Repeat(part, node.least, node.most)


def _run(char: Char, least: int, most: int | None) -> Node:
    run = Repeat(char, max(1, least), most)
    return run if least else Repeat(Seq((run,)), 0, 1)


def _inlined(node: Node, rules: Rules) -> Node:
    """Return `node`, or the rule it refers to if that is small and refers to no other rule."""
    if not isinstance(node, Ref):
        return node
    below = list(_nodes(rules[node.name]))
    small = len(below) <= _MAX_INLINED and not any(isinstance(other, Ref) for other in below)
    return rules[node.name] if small else node


def _nodes(node: Node) -> Iterator[Node]:
    yield node
    for child in children(node):
        yield from _nodes(child)


def _cut(rules: Rules, cut: set[int]) -> Rules:
    """Return the rules with the lexemes of these numbers, counted as `_Readings` does, cut into
    characters."""
    numbers = iter(range(_MAX_LEXEMES + 1))

    def again(node: Node) -> Node:
        if is_lexeme(node):
            return _characters(node) if next(numbers) in cut else node
        if isinstance(node, Seq):
            return Seq(tuple(map(again, node.parts)))
        if isinstance(node, Alt):
            return Alt(tuple(map(again, node.choices)))
        if isinstance(node, Repeat):
            return Repeat(again(node.part), node.least, node.most)
        return node

    return {name: again(node) for name, node in rules.items()}


def _characters(node: Node) -> Node:
    if isinstance(node, Text):
        return Seq(tuple(Text(char) for char in node.text))
    if isinstance(node, Repeat):
        return Repeat(Seq((node.part,)), node.least, node.most)  # no run, because of the Seq
    return node


# -------------------------------------------------------------------- readings
@dataclass
class _Item:
    """A node, and the lexemes that may begin it and follow it, as bits by their numbers."""

    node: Node
    items: list["_Item"] = field(default_factory=list["_Item"])
    number: int = -1  # of a lexeme
    empty: bool = False  # whether it matches the empty text
    first: int = 0
    follow: int = 0


class _Readings:
    """Finds which lexemes may stand in the same place of a text, and what may follow each."""

    def __init__(self, rules: Rules) -> None:
        self._lexemes: list[_Item] = []
        self._loops: dict[int, _Item] = {}  # the repetition that may go on with the same run
        self._rules = {name: self._item(node) for name, node in rules.items()}
        self._start = next(iter(self._rules.values()))
        while any([self._find_first(item) for item in self._rules.values()]):
            pass
        while any([self._find_follow(item) for item in self._rules.values()]):
            pass

    def misread(self) -> set[int]:
        """Return the numbers of the lexemes that would be read where a shorter one is right."""
        found: set[int] = set()
        for number, beside in self._places().items():
            after = self._characters_after(number)
            short = self._lexemes[number].node
            found |= {
                other
                for other in _bits(beside)
                if _extends(short, self._lexemes[other].node, after)
            }
        return found

    def _item(self, node: Node) -> _Item:
        item = _Item(node)
        if is_lexeme(node):
            item.number, item.first = len(self._lexemes), 1 << len(self._lexemes)
            self._lexemes.append(item)
            if len(self._lexemes) > _MAX_LEXEMES:
                raise PromptError(
                    f"the grammar refers to itself and has over {_MAX_LEXEMES} strings and sets:"
                    " make it smaller"
                )
            return item
        item.items = [self._item(child) for child in children(node)]
        if isinstance(node, Repeat) and node.most is None and node.least <= 1:
            inner = item.items[0]
            for run in inner.items if isinstance(inner.node, Alt) else [inner]:
                if isinstance(run.node, Repeat) and run.node.most is None and run.number >= 0:
                    self._loops[run.number] = item
        return item

    # ------------------------------------------------------ first and follow
    def _find_first(self, item: _Item) -> bool:
        """Add what is known of the nodes below; return whether anything was new."""
        changed = any([self._find_first(inner) for inner in item.items])
        node, first, empty = item.node, item.first, item.empty
        if isinstance(node, Ref):
            first |= self._rules[node.name].first
            empty |= self._rules[node.name].empty
        elif isinstance(node, Seq):
            empty = all(inner.empty for inner in item.items)
            first |= _first_of(item.items)
        elif isinstance(node, Alt):
            empty = any(inner.empty for inner in item.items)
            for inner in item.items:
                first |= inner.first
        elif item.items:
            inner = item.items[0]
            empty, first = inner.empty or _least(node) == 0, first | inner.first
        changed |= (first, empty) != (item.first, item.empty)
        item.first, item.empty = first, empty
        return changed

    def _find_follow(self, item: _Item) -> bool:
        """Tell the nodes below what may follow them; return whether anything was new."""
        node = item.node
        if isinstance(node, Ref):
            return _add_follow(self._rules[node.name], item.follow)
        changed = False
        for idx, inner in enumerate(item.items):
            follow = item.follow
            if isinstance(node, Seq):
                rest = item.items[idx + 1 :]
                follow = _first_of(rest) | (follow if all(i.empty for i in rest) else 0)
            elif isinstance(node, Repeat):
                follow |= inner.first if node.most != 1 else 0
            changed |= _add_follow(inner, follow)
            changed |= self._find_follow(inner)
        return changed

    # ---------------------------------------------------------------- places
    def _places(self) -> dict[int, int]:
        """Return, for each lexeme that can be reached, those that may stand where it stands."""
        beside: dict[int, int] = {}
        todo: list[tuple[int, int]] = []
        compared = 0

        def meet(some: int, others: int) -> None:
            """Note that all of `some` may stand where all of `others` may."""
            nonlocal compared
            for number in _bits(some):
                new = others & ~beside.get(number, 0)
                if not new:
                    continue
                beside[number] = beside.get(number, 0) | new
                compared += new.bit_count()
                if compared > _MAX_PAIRS:
                    raise PromptError("the grammar refers to itself and is too large: shorten it")
                todo.extend((number, other) for other in _bits(new))

        meet(self._start.first, self._start.first)
        while todo:
            one, other = todo.pop()
            nodes = self._lexemes[one].node, self._lexemes[other].node
            if one == other or _same_text(*nodes):
                meet(self._lexemes[one].follow, self._lexemes[other].follow)
        return beside

    def _characters_after(self, number: int) -> Ranges:
        """Return the characters that may follow a lexeme. A run in a repetition may be followed by
        itself: that makes the same run longer."""
        follow, loop = self._lexemes[number].follow, self._loops.get(number)
        if loop is not None and not loop.follow >> number & 1:
            follow &= ~(1 << number)
        first = [_first_characters(self._lexemes[other].node) for other in _bits(follow)]
        return normal([pair for ranges in first for pair in ranges])


def _add_follow(item: _Item, follow: int) -> bool:
    before, item.follow = item.follow, item.follow | follow
    return item.follow != before


def _first_of(items: Iterable[_Item]) -> int:
    first = 0
    for item in items:
        first |= item.first
        if not item.empty:
            break
    return first


def _least(node: Node) -> int:
    return node.least if isinstance(node, Repeat) else 1


def _bits(mask: int) -> Iterator[int]:
    while mask:
        lowest = mask & -mask
        yield lowest.bit_length() - 1
        mask ^= lowest


# ------------------------------------------------------------------ characters
def _counted(node: Node) -> tuple[Ranges, int, int | None]:
    """Return the set of a character or a run, and how many characters of it there are."""
    if isinstance(node, Char):
        return node.ranges, 1, 1
    assert isinstance(node, Repeat) and isinstance(node.part, Char)
    return node.part.ranges, node.least, node.most


def _first_characters(node: Node) -> Ranges:
    if isinstance(node, Text):
        return ((ord(node.text[0]), ord(node.text[0])),)
    return _counted(node)[0]


def _holds(ranges: Ranges, char: str) -> bool:
    return any(first <= ord(char) <= last for first, last in ranges)


def _meet(some: Ranges, others: Ranges) -> bool:
    return any(a <= d and c <= b for a, b in some for c, d in others)


def _matches(node: Node, text: str) -> bool:
    if isinstance(node, Text):
        return node.text == text
    ranges, least, most = _counted(node)
    enough = least <= len(text) and (most is None or len(text) <= most)
    return enough and all(_holds(ranges, char) for char in text)


def _same_text(one: Node, other: Node) -> bool:
    """Return whether two lexemes may match the same text."""
    if isinstance(one, Text):
        return _matches(other, one.text)
    if isinstance(other, Text):
        return _matches(one, other.text)
    (some, least, most), (others, least_too, most_too) = _counted(one), _counted(other)
    highest = min((m for m in (most, most_too) if m is not None), default=None)
    return _meet(some, others) and (highest is None or max(least, least_too) <= highest)


def _extends(short: Node, long: Node, after: Ranges) -> bool:
    """Return whether `long` may match a text of `short` followed by a character of `after`."""
    if isinstance(long, Text):
        text = long.text
        return any(
            _holds(after, text[end]) and _matches(short, text[:end]) for end in range(1, len(text))
        )
    ranges, _, most = _counted(long)
    if not _meet(ranges, after):
        return False
    if isinstance(short, Text):
        fits = most is None or len(short.text) < most
        return fits and all(_holds(ranges, char) for char in short.text)
    set_of_short, least, _ = _counted(short)
    return _meet(set_of_short, ranges) and (most is None or least < most)
