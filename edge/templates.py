"""Chat templates: from messages to the prompt text that the model was trained on.

A template is Jinja2 with the conventions of Hugging Face. It comes inside the model file, so it
runs in `edge.sandbox`: it cannot reach Python, and the text it makes is bounded.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any, NoReturn, cast

from jinja2 import pass_context
from jinja2.exceptions import SecurityError, TemplateError, TemplateSyntaxError, UndefinedError
from jinja2.runtime import Context

from haversack.devices.errors import PromptError
from haversack.edge.sandbox import METER, Meter, Sandbox, meter_of
from haversack.edge.text import without_mark

MAX_INDENT = 16
MAX_DATE_FORMAT_CHARS = 256


class _RaisedError(TemplateError):
    """The template called `raise_exception`."""


def _raise_exception(message: object) -> NoReturn:
    raise _RaisedError(str(message))


def _strftime_now(date_format: str) -> str:
    if len(date_format) > MAX_DATE_FORMAT_CHARS:
        raise SecurityError(f"a date format of more than {MAX_DATE_FORMAT_CHARS} characters")
    return datetime.now().strftime(date_format)


@pass_context
def _tojson(
    context: Context, value: Any, indent: int | None = None, sort_keys: bool = False, **style: Any
) -> str:
    """Return JSON as `json.dumps` writes it, because Jinja's own filter escapes HTML and sorts
    keys."""
    if isinstance(indent, str) or (indent or 0) > MAX_INDENT:
        raise SecurityError(f"tojson with an indent other than 0 to {MAX_INDENT}")
    ensure_ascii, separators = style.pop("ensure_ascii", False), style.pop("separators", None)
    if style:
        raise TypeError(f"tojson has no argument {next(iter(style))!r}")
    encoder = json.JSONEncoder(
        ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )
    meter = meter_of(context)
    return "".join(cast(Iterator[str], map(meter, encoder.iterencode(value))))


_SANDBOX = Sandbox(
    filters={"tojson": _tojson},
    functions={"raise_exception": _raise_exception, "strftime_now": _strftime_now},
)


class ChatTemplate:
    """A compiled chat template; `render` may be called from several threads.

    `bos` and `eos` are the texts of the model's begin and end tokens, which templates print.
    Raises `PromptError` where the source does not compile.
    """

    def __init__(self, source: str, *, bos: str = "", eos: str = "") -> None:
        self.source, self.bos = source, bos
        self._tokens = {"bos_token": bos, "eos_token": eos}
        try:
            self._template = _SANDBOX.compiled(source)
        except Exception as error:  # Python's compiler raises other errors than Jinja
            raise PromptError(f"{_compile_fault(error)}; give another chat template") from error

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        add_generation_prompt: bool = True,
        **variables: Any,
    ) -> str:
        """Return the prompt for `messages`, each with a `role` and a `content` of text.

        With `add_generation_prompt` it ends where the model's answer begins. `variables` are others
        that the template may use: `tools`, `enable_thinking`. Raises `PromptError`.
        """
        check_messages(messages)
        given = {"tools": None, "documents": None} | self._tokens | variables
        given |= {
            "messages": [
                {**message, "content": without_mark(message["content"])} for message in messages
            ],
            "add_generation_prompt": add_generation_prompt,
        }
        try:
            return cast(str, self._template.render({METER: Meter(given), **given}))
        except Exception as error:  # a template can raise whatever Python's operators do
            raise PromptError(_render_fault(error)) from error


def check_messages(messages: Sequence[Mapping[str, Any]]) -> None:
    """Raise `PromptError` unless each message is a mapping with `role` and `content` of text."""
    listed = isinstance(messages, Sequence)  # pyright: ignore[reportUnnecessaryIsInstance]
    if not listed or isinstance(messages, str) or not messages:
        raise PromptError('no messages: give a list such as [{"role": "user", "content": "Hi"}]')
    for idx, message in enumerate(messages):
        if not isinstance(message, Mapping):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise PromptError(f"message {idx} is a {type(message).__name__}, not a mapping")
        for key in ("role", "content"):
            if not isinstance(message.get(key), str):
                found = f"has {type(message[key]).__name__}" if key in message else "has no"
                raise PromptError(f'message {idx} {found} "{key}": give text under that key')


def _compile_fault(error: Exception) -> str:
    if isinstance(error, TemplateSyntaxError):
        return f"chat template: syntax error on line {error.lineno}: {error.message}"
    if isinstance(error, RecursionError):
        return "chat template: nested too deeply"
    return f"chat template does not compile: {error}"


def _render_fault(error: Exception) -> str:
    if isinstance(error, _RaisedError):
        return f'the chat template raised: "{error}"; change the messages to what it accepts'
    if isinstance(error, UndefinedError):
        return f"the chat template misses a value: {error}; pass it as a variable of that name"
    if isinstance(error, SecurityError):
        return f"the chat template is refused: {str(error).rstrip('.')}; give another chat template"
    if isinstance(error, RecursionError):
        return "the chat template calls itself without end; give another chat template"
    kind = type(error).__name__
    return f"the chat template failed: {kind}: {error}; check the messages or give another template"
