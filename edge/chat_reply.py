"""A reply of a chat: its reasoning and its answer, told apart while they come."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from haversack.edge.generation import Generation
from haversack.edge.model import Model
from haversack.edge.replies import Piece, ReplyFormat, ReplyReader, reply_format
from haversack.edge.sampling import Sampling


class Reply:
    """Iterate over it for pieces of the reply as they come. `answer` is what came so far of it
    without reasoning, which is all that later turns of the chat repeat."""

    def __init__(self, generation: Generation, reader: ReplyReader) -> None:
        self.generation, self._reader = generation, reader
        self.answer = ""

    def __iter__(self) -> Iterator[Piece]:
        for text in self.generation:
            yield from self._parts(self._reader.push(text))
        yield from self._parts(self._reader.finish())

    def _parts(self, parts: Sequence[object]) -> Iterator[Piece]:
        for part in parts:
            if isinstance(part, Piece):  # no other is read without tools
                self.answer += "" if part.is_reasoning else part.text
                yield part


def begin_reply(
    model: Model,
    messages: Sequence[Mapping[str, Any]],
    max_tokens: int | None,
    sampling: Sampling,
) -> Reply:
    """Return the model's reply to `messages`, which begins when it is read. Raises what
    `Model.chat` raises."""
    template = model.chat_template()
    prompt, format = template.render(messages), reply_format(template.source).without_calls()
    if sampling.constraint() is not None:  # the text has no room for marks
        format = ReplyFormat()
    generation = model.generate(prompt, max_tokens, replace(sampling, marks=format.marks))
    return Reply(generation, ReplyReader(format, prompt, {}))
