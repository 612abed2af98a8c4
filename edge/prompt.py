"""From what people give as a prompt to token ids."""

from collections.abc import Sequence
from operator import index

from haversack.devices.errors import ContextError, PromptError
from haversack.devices.tokenizing import LEAST_STACK_BYTES
from haversack.devices.vocabulary import Vocabulary
from haversack.edge.model_plan import Plan
from haversack.edge.text import without_mark

Prompt = str | Sequence[int]

_SURELY_CHARS = 16  # of a token: fewer than these for each of the context may well fit


def prompt_tokens(prompt: Prompt, vocabulary: Vocabulary, planned: Plan) -> list[int]:
    """The ids of `prompt` as a model's whole input. Raises ContextError where they surely do not
    fit, PromptError."""
    if not isinstance(prompt, str):
        return token_ids(prompt, vocabulary, planned)
    prompt, ctx_tokens = without_mark(_encodable(prompt)), planned.shape.ctx_tokens
    if len(prompt) > ctx_tokens * _SURELY_CHARS:  # a text of that length takes long to tokenize
        least_tokens = vocabulary.least_tokens(prompt)
        if least_tokens > ctx_tokens:
            raise ContextError(
                f"the prompt has at least {least_tokens} tokens, the context holds"
                f" {ctx_tokens}: shorten it or raise --ctx"
            )
    return token_ids(prompt, vocabulary, planned)


def token_ids(
    prompt: Prompt, vocabulary: Vocabulary, planned: Plan, add_special: bool = True
) -> list[int]:
    """The ids of `prompt`, see `Model.tokenize`. Raises PromptError."""
    if isinstance(prompt, str) and vocabulary.has_text:
        return vocabulary.tokenize(
            _encodable(prompt),
            add_special=add_special,
            most_stack_bytes=max(LEAST_STACK_BYTES, planned.headroom_bytes),
        )
    if isinstance(prompt, bytes | bytearray | memoryview):
        raise PromptError(
            f"the prompt is {type(prompt).__name__}, which could be text or token ids: give text,"
            " prompt.decode() for example, or list(prompt)"
        )
    try:
        ids = map(int, prompt.split()) if isinstance(prompt, str) else map(index, prompt)
        tokens = list(ids)
    except ValueError:
        raise PromptError(
            f"{planned.path.name} has no vocabulary: give token ids, not {prompt!r}"
        ) from None
    except TypeError:
        raise PromptError(f"the prompt is {prompt!r}: give text or whole token ids") from None
    strange = [i for i in tokens if not 0 <= i < vocabulary.num_tokens]
    if strange:
        raise PromptError(
            f"token id {strange[0]} is not in the vocabulary: give 0 to {vocabulary.num_tokens - 1}"
        )
    return tokens


def _encodable(text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise PromptError(f"the prompt is no Unicode text: {error.reason}") from None
    return text
