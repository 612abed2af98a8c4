"""The plugin of the program `llm` (llm.datasette.io): `llm -m haversack "Tell me a story"`."""

from collections.abc import Iterator
from functools import lru_cache
from typing import Any, cast

import llm
from pydantic import Field

from haversack.edge.chat_reply import begin_reply
from haversack.edge.hub import local_path
from haversack.edge.loading import builtin_model, load
from haversack.edge.model import Model
from haversack.edge.sampling import Sampling


@lru_cache(maxsize=1)
def _loaded(path: str | None, ram: str | None, ctx: int | None) -> Model:
    """The model, which stays in memory while `llm` runs, for the turns of a chat."""
    return load(local_path(path) if path else builtin_model(), ram, ctx)


class Haversack(llm.Model):
    """A model of haversack's; the built-in one unless `-o path` names another."""

    model_id = "haversack"
    can_stream = True
    supports_schema = True

    class Options(llm.Options):  # pyright: ignore[reportIncompatibleVariableOverride]
        """What `-o` sets."""

        path: str | None = Field(None, description="A GGUF file, or a name on the Hugging Face hub")
        ram: str | None = Field(None, description="The most memory to take, as in 6GiB")
        ctx: int | None = Field(None, description="Tokens of context")
        max_tokens: int | None = Field(None, description="Tokens of a reply at most")
        temperature: float | None = Field(None, description="0 is greedy")
        seed: int | None = Field(None, description="Equal seeds give equal text")

    def execute(
        self,
        prompt: llm.Prompt,
        stream: bool,
        response: llm.Response,
        conversation: llm.Conversation | None,
    ) -> Iterator[str]:
        """Yield the pieces of the reply."""
        options: Any = prompt.options
        given = {"temperature": options.temperature, "seed": options.seed}
        settings = {name: value for name, value in given.items() if value is not None}
        if prompt.schema is not None:
            settings["json_schema"] = prompt.schema
        model = _loaded(options.path, options.ram, options.ctx)
        messages = _messages(prompt, conversation)
        reply = begin_reply(model, messages, options.max_tokens, Sampling(**settings))
        answer = (piece.text for piece in reply if not piece.is_reasoning)
        if stream:
            yield from answer
        else:
            yield "".join(answer)
        generation = reply.generation
        response.set_usage(input=generation.prompt_tokens, output=len(generation.tokens))


def _messages(prompt: llm.Prompt, conversation: llm.Conversation | None) -> list[dict[str, str]]:
    messages = list[dict[str, str]]()
    earlier = [] if conversation is None else conversation.responses
    for asked in [*(response.prompt for response in earlier), prompt]:
        if asked.system and not messages:
            messages.append({"role": "system", "content": asked.system})
    for response in earlier:
        messages.append({"role": "user", "content": response.prompt.prompt or ""})
        messages.append({"role": "assistant", "content": cast(llm.Response, response).text()})
    return [*messages, {"role": "user", "content": prompt.prompt or ""}]


@llm.hookimpl
def register_models(register: Any) -> None:
    """Tell `llm` of the model."""
    register(Haversack())
