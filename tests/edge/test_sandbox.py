import pytest

from haversack.devices.errors import PromptError
from haversack.edge import sandbox
from haversack.edge.templates import ChatTemplate

USER = [{"role": "user", "content": "Hi"}]
DOUBLING = (
    "{% set ns = namespace(x='x') %}{% for i in range(64) %}{% set ns.x = MORE %}{% endfor %}"
)
RECURSION = "{% macro f(n) %}{% if n %}BODY{% endif %}{% endmacro %}{{ f(100) }}"
BIG = "{% set x = 'a' * 1000000 %}"

ESCAPES = [
    "{{ ''.__class__.__mro__ }}",
    "{{ ''['__class__']['__mro__'] }}",
    "{{ '' | attr('__class__') }}",
    "{{ [''] | map(attribute='__class__') | map(attribute='__mro__') | list }}",
    "{{ '{0.__class__.__mro__}'.format('') }}",
    "{{ '{x.__class__}'.format_map({'x': ''}) }}",
    "{{ raise_exception.__globals__['json'] }}",
    "{{ namespace.__init__.__globals__ }}",
    "{{ dict.__subclasses__() }}",
    "{{ range.__self__.__import__('os') }}",
    "{{ messages.__class__.__base__ }}",
    "{{ self._TemplateReference__context.environment }}",
    "{{ lipsum.__globals__.os }}",
    "{{ cycler.__init__.__globals__.os }}",
    "{{ messages.append(1) }}",
    "{{ messages[0].update(role='system') }}",
    "{{ messages[0].pop('role') }}",
    "{% set messages[0].role = 'system' %}",
    "{% set ns.x = 1 %}",
    "{% import 'os' as os %}{{ os.getcwd() }}",
    "{% from 'os' import getcwd %}",
    "{% extends 'base' %}",
    "{{ __import__('os').getcwd() }}",
    "{{ open('/etc/passwd') }}",
    "{{ 'the meter' | the meter }}",
]

FLOODS = [
    "{{ 'x' * 10000000000 }}",
    "{{ 10000000000 * [0] }}",
    "{{ 2 ** 10000000000 }}",
    "{{ '%10000000000d' % 1 }}",
    "{{ '%*d' % (10000000000, 1) }}",
    "{{ 'x' | center(10000000000) }}",
    "{{ 'x'.ljust(10000000000) }}",
    "{{ '{:10000000000}'.format(1) }}",
    "{{ (1).to_bytes(10000000000, 'big') }}",
    "{{ 'x'.encode() }}",
    "{{ range(10000000000) | list }}",
    "{{ [1] | tojson(indent=10000000000) }}",
    "{{ [1] | tojson(indent=messages[0].content * 1000) }}",
    "{{ [1] | tojson(nonsense=1) }}",
    "{{ 'a\nb' | indent(10000000000) }}",
    "{{ strftime_now('%Y' * 1000000) }}",
    "{{ ('9' * 4000) | int(base=16) }}",
    DOUBLING.replace("MORE", "ns.x ~ ns.x"),
    DOUBLING.replace("MORE", "ns.x + ns.x"),
    DOUBLING.replace("MORE", "ns.x.replace('x', 'xx')"),
    DOUBLING.replace("MORE", "ns.x | replace('x', 'xx')"),
    DOUBLING.replace("MORE", "(ns.x, ns.x) | join"),
    DOUBLING.replace("'x'", "7").replace("MORE", "ns.x * ns.x"),
    "{% set x = 'a' %}" + "{% set x %}{{ x }}{{ x }}{% endset %}" * 64,
    "{% for i in range(100000) %}" + "y" * 1000 + "{% endfor %}",
    "{% for i in range(100000) %}{% set x %}" + "y" * 1000 + "{% endset %}{% endfor %}",
    RECURSION.replace("BODY", "{{ f(n) }}"),
    BIG + "{{ x.replace('a', x) }}",
    BIG + "{{ x | replace('a', x) }}",
    BIG + "{{ x.join(range(100000) | map('string')) }}",
    BIG + "{{ range(100000) | join(x) }}",
    BIG + "{{ [none] * 1000 | map('default', x, true) | join }}",
    BIG + "{{ range(1000) | map('replace', '1', x) | join }}",
    BIG + "{{ x.strip('b' * 2000) }}",
    BIG + "{{ x | trim('b' * 2000) }}",
    BIG + "{% filter replace('a', 'b' * 1000) %}{{ x }}{% endfilter %}",
]

HANGS = [
    "{% for a in range(100000) %}{% for b in range(100000) %}{% endfor %}{% endfor %}",
    "{% for a in range(100000) %}{% for b in range(100000) if b > a %}{% endfor %}{% endfor %}",
    "{{ range(100000) | select('in', [range(100000) | list] * 10) | list }}" * 100,
    RECURSION.replace("BODY", "{% set _ = f(n - 1) %}{% set _ = f(n - 1) %}").replace("100", "60"),
    DOUBLING.replace("MORE", "[ns.x, ns.x]") + "{{ ns.x }}",
    DOUBLING.replace("MORE", "{'a': ns.x, 'b': ns.x}") + "{{ ns.x | tojson }}",
]


@pytest.mark.parametrize("source", ESCAPES)
def test_no_way_out(source: str) -> None:
    with pytest.raises(PromptError):
        ChatTemplate(source).render(USER)
    assert USER == [{"role": "user", "content": "Hi"}]


@pytest.mark.parametrize("source", FLOODS)
def test_no_flood(source: str) -> None:
    with pytest.raises(PromptError) as refused:
        ChatTemplate(source).render(USER)
    assert "runs for more than" not in str(refused.value)


@pytest.mark.parametrize("source", HANGS)
def test_no_hang(source: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sandbox, "MAX_RENDER_S", 0.1)
    with pytest.raises(PromptError, match="runs for more than"):
        ChatTemplate(source).render(USER)


def test_namespaces_do_not_print_each_other() -> None:
    nested = DOUBLING.replace("MORE", "namespace(a=ns.x, b=ns.x)")
    assert ChatTemplate(nested + "{{ ns.x }}").render(USER) == "<namespace>"


def test_source_and_input_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(PromptError, match="its source has more than"):
        ChatTemplate("x" * (sandbox.MAX_SOURCE_CHARS + 1))
    monkeypatch.setattr(sandbox, "MAX_INPUT_CHARS", 1000)
    with pytest.raises(PromptError, match="it was given more than 1000 characters"):
        ChatTemplate("x").render([{"role": "user", "content": "x" * 1000}])


def test_long_chats_have_room() -> None:
    chat = [{"role": "user", "content": "word " * 2000}] * 1000  # ten million characters
    source = "{% for m in messages %}" + "{{ '[' + m.content | trim + ']' }}" * 5 + "{% endfor %}"
    assert len(ChatTemplate(source).render(chat)) == 5 * 1000 * 10001


def test_weigh_counts_characters_and_items() -> None:
    assert sandbox.weigh("abc", 100) == 4
    assert sandbox.weigh({"a": ["bc", 1]}, 100) == 1 + 2 + 1 + 3 + 1
    assert sandbox.weigh([[0] * 1000] * 1000, 5000) > 5000
