import datetime
from pathlib import Path
from typing import Any

import pytest

from haversack.devices.errors import PromptError
from haversack.edge.templates import ChatTemplate, check_messages

TEMPLATES = Path(__file__).parents[1] / "data" / "templates"
NAMES = sorted(path.stem for path in TEMPLATES.glob("*.jinja"))
CHAT = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Hi <b>&é"},
    {"role": "assistant", "content": "Yes."},
    {"role": "user", "content": "Next?"},
]
TOOL = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "Tells the <weather> in café towns",
        "parameters": {
            "type": "object",
            "properties": {"town": {"type": "string", "description": "Its name"}},
            "required": ["town"],
        },
    },
}

CHATML = """{% for message in messages %}
{{ '<|im_start|>' + message['role'] + '\\n' + message.content + '<|im_end|>' }}
{% endfor %}
{% if add_generation_prompt %}
{{- '<|im_start|>assistant\\n' }}
{%- endif %}
"""
LLAMA_2 = (
    "{% if messages[0]['role'] == 'system' %}"
    "{% set head = '<<SYS>>\\n' + messages[0]['content'] + '\\n<</SYS>>\\n\\n' %}"
    "{% set rest = messages[1:] %}{% else %}{% set head, rest = '', messages %}{% endif %}"
    "{% for m in rest %}{% if loop.first %}{% set text = head + m.content %}{% else %}"
    "{% set text = m.content %}{% endif %}{% if m.role == 'user' %}"
    "{{ bos_token + '[INST] ' + text + ' [/INST]' }}{% else %}"
    "{{ ' ' ~ text | trim ~ ' ' ~ eos_token }}{% endif %}{% endfor %}"
)


def rendered(source: str, **variables: Any) -> str:
    return ChatTemplate(source, bos="<s>", eos="</s>").render(CHAT, **variables)


def fault(source: str, **variables: Any) -> str:
    with pytest.raises(PromptError) as caught:
        rendered(source, **variables)
    return str(caught.value)


def test_chatml() -> None:
    assert rendered(CHATML) == (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi <b>&é<|im_end|>\n"
        "<|im_start|>assistant\nYes.<|im_end|>\n<|im_start|>user\nNext?<|im_end|>\n"
        "<|im_start|>assistant\n"
    )
    assert rendered(CHATML, add_generation_prompt=False).endswith("Next?<|im_end|>\n")


def test_llama_2() -> None:
    assert rendered(LLAMA_2) == (
        "<s>[INST] <<SYS>>\nBe brief.\n<</SYS>>\n\nHi <b>&é [/INST] Yes. </s>"
        "<s>[INST] Next? [/INST]"
    )


def test_real_templates_are_here() -> None:
    assert len(NAMES) == 19


@pytest.mark.parametrize("name", NAMES)
def test_real_template_renders_the_chat(name: str) -> None:
    source = (TEMPLATES / f"{name}.jinja").read_text(encoding="utf-8")
    text = rendered(source)
    places = [text.index(message["content"]) for message in CHAT]
    assert places == sorted(places)
    with_tools = ChatTemplate(source).render(CHAT[1:2], tools=[TOOL])
    assert "Hi <b>&é" in with_tools
    assert ("weather" in with_tools) == ("tools" in source)


def test_real_templates_exactly() -> None:
    qwen = (TEMPLATES / "Qwen-Qwen3-0.6B.jinja").read_text(encoding="utf-8")
    question = CHAT[3:]
    assert ChatTemplate(qwen).render(question, enable_thinking=False) == (
        "<|im_start|>user\nNext?<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"
    )
    phi = (TEMPLATES / "microsoft-Phi-3.5-mini-instruct.jinja").read_text(encoding="utf-8")
    assert ChatTemplate(phi).render(question) == "<|user|>\nNext?<|end|>\n<|assistant|>\n"


@pytest.mark.parametrize(
    ("source", "text"),
    [
        ("{{ {'b': '<é>', 'a': [1, none, true]} | tojson }}", '{"b": "<é>", "a": [1, null, true]}'),
        ("{{ {'a': [1]} | tojson(indent=2) }}", '{\n  "a": [\n    1\n  ]\n}'),
        ("{{ [1, 2] | tojson(separators=(',', ':')) }}", "[1,2]"),
        ("{{ 'é' | tojson(ensure_ascii=true) }}", '"\\u00e9"'),
        ("{% generation %}{{ eos_token }}{% endgeneration %}", "</s>"),
        ("{% for m in messages %}{% if loop.index > 1 %}{% break %}{% endif %}x{% endfor %}", "x"),
        ("{{ tools is none }} {{ documents is none }} {{ nothing is defined }}", "True True False"),
        ("{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}{% endfor %}"
         "{{ ns.n }}", "4"),
        ("{% macro twice(x) %}{{ x }}{{ x }}{{ caller() }}{% endmacro %}"
         "{% call twice('a') %}b{% endcall %}", "aab"),
        ("{{ '%s has %02d' % ('x', 5) }} {{ [1, 2] | join('-') }} {{ '-'.join(['a', 'b']) }}",
         "x has 05 1-2 a-b"),
        ("{{ 'aXbX'.replace('X', 'y') }} {{ 'aXbX' | replace('X', 'y', 1) }}", "ayby aybX"),
        ("{{ 'a\nb' | indent(2) }} {{ '=' * 3 }} {{ messages | map(attribute='role') | first }}",
         "a\n  b === system"),
        ("{% filter upper | replace('A', 'b') %}a{{ 'c' }}{% endfilter %}", "bC"),
        ("{% for a, b in {'x': 1}.items() %}{{ a }}{{ b }}{% endfor %}", "x1"),
    ],
)  # fmt: skip
def test_conventions(source: str, text: str) -> None:
    assert rendered(source) == text


def test_strftime_now() -> None:
    assert rendered("{{ strftime_now('%Y') }}") in {
        str(datetime.datetime.now().year + years) for years in (-1, 0)
    }


def test_a_template_renders_again_and_again() -> None:
    template = ChatTemplate(CHATML)
    assert template.render(CHAT) == template.render(CHAT)
    assert CHAT[0] == {"role": "system", "content": "Be brief."}


def test_the_template_raises() -> None:
    message = fault("{{ raise_exception('roles must alternate') }}")
    assert message.startswith('the chat template raised: "roles must alternate"')


def test_faults_say_what_and_where() -> None:
    assert "syntax error on line 2" in fault("a\n{% if %}")
    assert "No filter named 'nope'" in fault("{{ 1 | nope }}")
    assert "'x' is undefined; pass it" in fault("{{ x.y }}")
    assert "ZeroDivisionError" in fault("{{ 1 / 0 }}")
    assert "no loader" in fault("{% include '/etc/passwd' %}")
    assert "nested too deeply" in fault("{{ " + "(" * 3000 + "1" + ")" * 3000 + " }}")


@pytest.mark.parametrize(
    ("messages", "part"),
    [
        ([], "no messages"),
        ("hello", "no messages"),
        ({"role": "user", "content": "x"}, "no messages"),
        (3, "no messages"),
        (["hello"], "message 0 is a str"),
        ([CHAT[0], {"role": "user"}], 'message 1 has no "content"'),
        ([{"content": "x"}], 'message 0 has no "role"'),
        ([{"role": "user", "content": None}], 'message 0 has NoneType "content"'),
        ([{"role": "user", "content": [{"type": "text"}]}], 'message 0 has list "content"'),
    ],
)
def test_messages_are_checked(messages: Any, part: str) -> None:
    with pytest.raises(PromptError, match=part):
        check_messages(messages)
    with pytest.raises(PromptError, match=part):
        ChatTemplate(CHATML).render(messages)
