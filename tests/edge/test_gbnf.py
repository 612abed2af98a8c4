import pytest

from haversack.devices.errors import PromptError
from haversack.edge.gbnf import (
    MAX_GRAMMAR_CHARS,
    Alt,
    Char,
    Node,
    Ref,
    Repeat,
    Seq,
    Text,
    complement,
    normal,
    parse_gbnf,
)
from haversack.edge.lark import gbnf_to_grammar


def root(body: str) -> Node:
    return parse_gbnf(f"root ::= {body}")["root"]


@pytest.mark.parametrize(
    ("body", "node"),
    [
        ('"a"', Text("a")),
        (r'"\x41\u00e9\U0001F600\n\"\\"', Text('Aé😀\n"\\')),
        ('""', Seq(())),
        ('"a" "b"', Seq((Text("a"), Text("b")))),
        ('"a" | "b"', Alt((Text("a"), Text("b")))),
        ('"a" |\n "b"', Alt((Text("a"), Text("b")))),
        ('"a"\n | "b"', Alt((Text("a"), Text("b")))),
        ('( "a" # comment\n | "b")', Alt((Text("a"), Text("b")))),
        ('| "a"', Alt((Seq(()), Text("a")))),
        ("[a-c_\\]-]", Char(((45, 45), (93, 93), (95, 95), (97, 99)))),
        ("[^\\x00-\\x7f]", Char(((0x80, 0x10FFFF),))),
        ("[z-a]", Char(())),
        (".", Char(((0, 0x10FFFF),))),
        ('"a"{2}', Repeat(Text("a"), 2, 2)),
        ('"a"{ 2 , }', Repeat(Text("a"), 2, None)),
        ('"a"{2,3}', Repeat(Text("a"), 2, 3)),
        ('"a"{0}', Seq(())),
        ('"a"*+', Repeat(Repeat(Text("a"), 0, None), 1, None)),
        ('"{2,1}((" # {9,1} (', Text("{2,1}((")),
    ],
)
def test_bodies(body: str, node: Node) -> None:
    assert root(body) == node


def test_rules_refer_to_each_other() -> None:
    gbnf = '# first\nroot ::= my-rule other_rule\r\n\nmy-rule ::= "a"\nother_rule ::= my-rule\n\n'
    assert parse_gbnf(gbnf) == {
        "root": Seq((Ref("my-rule"), Ref("other_rule"))),
        "my-rule": Text("a"),
        "other_rule": Ref("my-rule"),
    }


@pytest.mark.parametrize("mark", ["\ufeff", ""])
def test_a_byte_order_mark_is_no_content(mark: str) -> None:
    assert parse_gbnf(mark + 'root ::= "a"') == {"root": Text("a")}
    assert gbnf_to_grammar(mark + 'root ::= "\ufeff"') == gbnf_to_grammar('root ::= "\\uFEFF"')


@pytest.mark.parametrize(
    ("gbnf", "message"),
    [
        ("", "the grammar is empty"),
        (" \n", "the grammar is empty"),
        ("\ufeff", "the grammar is empty"),
        ('root ::= "a\0b"', "holds a null character"),
        ("this is no grammar", "line 1, before 'is no grammar': ::= was expected"),
        ('start ::= "a"', "no rule named root"),
        ("root ::= other", 'Undefined rule identifier "other" in rule root'),
        ('root ::= a\na ::= "x" | my-item*', 'Undefined rule identifier "my-item" in rule a'),
        ('root ::= "a', "has no end"),
        ("root ::= [a", "has no end"),
        ('root ::= "\\q"', "no escape"),
        ('root ::= "\\u12"', "no escape"),
        ('root ::= "\ud800"', "not valid Unicode"),
        ('root ::= "\\U00110000"', "not valid Unicode"),
        ('root ::= "a"{3,2}', r"repeats \{3,2\}: the first must not be larger"),
        ('root ::= "a"{x}', "a repetition is"),
        ('root ::= "a"{999999}', "repeats more than 100000 times"),
        ("root ::= *", "cannot stand here"),
        ('root ::= ("a"', r"\) was expected"),
        ('root ::= "a")', "cannot stand here"),
        ('root ::= "a"\nroot ::= "b"', "line 2.*defined twice"),
        ("root ::= <think>", "tokens cannot be named"),
        ("root ::= " + "(" * 200 + '"a"' + ")" * 200, "nests more than 100 parentheses"),
        ('root ::= "a"' + "?" * 5000, "more than 100 repetitions"),
        ("x" * (MAX_GRAMMAR_CHARS + 1), "at most"),
    ],
)
def test_a_bad_grammar(gbnf: str, message: str) -> None:
    with pytest.raises(PromptError, match=message) as caught:
        gbnf_to_grammar(gbnf)
    assert "\n" not in str(caught.value)


def test_a_long_chain_of_rules_is_refused() -> None:
    """llguidance would overflow its stack."""
    chain = "".join(f"r{i} ::= r{i + 1}\n" for i in range(20_000))
    with pytest.raises(PromptError, match="in a chain: at most 500"):
        gbnf_to_grammar(f'root ::= r0\n{chain}r20000 ::= "a"')


def test_rules_that_nothing_needs_may_be_odd() -> None:
    assert gbnf_to_grammar('root ::= "a"\nunused ::= unused "b"').lark == "start: R0\nR0: /a/\n"


def test_sets_of_characters() -> None:
    assert normal([(5, 9), (1, 3), (4, 4), (20, 10)]) == ((1, 9),)
    assert complement(((0, 4), (6, 0x10FFFF))) == ((5, 5),)
    assert complement(()) == ((0, 0x10FFFF),)
