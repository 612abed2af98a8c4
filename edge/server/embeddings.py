"""Embeddings: texts become vectors. OpenAI's `/v1/embeddings`."""

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from sse_starlette import ServerSentEvent

from haversack.devices.errors import CancelledError
from haversack.devices.interrupts import StopFlag
from haversack.edge.model import Model
from haversack.edge.prompt import Prompt
from haversack.edge.server.errors import bad_request
from haversack.edge.server.fields import Fields
from haversack.edge.server.jobs import Begin, Embedded, End, Event, Job

_MOST_INPUTS = 2048  # as OpenAI's
_INPUT = "text, a list of texts, token ids, or a list of lists of them"


@dataclass(frozen=True)
class EmbeddingAsk:
    """What a request for embeddings wants. Vectors of another length than `dimensions` are
    refused."""

    model: str | None
    inputs: Sequence[Prompt]
    dimensions: int | None

    def job(self, name: str) -> Job:
        return EmbeddingJob(name, self)


def read_embeddings(body: Fields) -> EmbeddingAsk:
    """Read a request. Raises ApiError."""
    return EmbeddingAsk(body.text("model"), _read_inputs(body), body.count("dimensions"))


def read_encoding(body: Fields) -> bool:
    """Return whether vectors are wanted as base64 of float32. Raises ApiError."""
    encoding = body.text("encoding_format") or "float"
    if encoding not in ("float", "base64"):
        raise body.refuse("encoding_format", "float or base64")
    return encoding == "base64"


def _read_inputs(body: Fields) -> Sequence[Prompt]:
    value = body.values.get("input")
    if isinstance(value, str):
        return [value]
    if not isinstance(value, list) or not 1 <= len(value) <= _MOST_INPUTS:
        raise body.refuse("input", f"{_INPUT}, {_MOST_INPUTS} at most")
    if _are_ids(value):
        return [value]
    for each in value:
        if not (isinstance(each, str) or (isinstance(each, list) and each and _are_ids(each))):
            raise body.refuse("input", _INPUT)
    return value


def _are_ids(values: list[Any]) -> bool:
    return all(isinstance(each, int) and not isinstance(each, bool) for each in values)


class EmbeddingJob(Job):
    """Embeds one input after the other."""

    def __init__(self, name: str, ask: EmbeddingAsk) -> None:
        super().__init__(name)
        self._ask, self._stop = ask, StopFlag()
        self._cancelled = False

    def cancel(self) -> None:
        self._cancelled = True
        self._stop.request()

    def _run(self, model: Model) -> None:
        ask, length = self._ask, model.hidden_size
        if ask.dimensions not in (None, length):
            raise bad_request(
                f"dimensions is {ask.dimensions}: this model's vectors have {length} numbers"
            )
        if "" in ask.inputs:
            raise bad_request("a text to embed is empty: give text")
        inputs = [model.tokenize(each) for each in ask.inputs]
        num_tokens = sum(map(len, inputs))
        self.put(Begin(self._name, num_tokens))
        for tokens in inputs:
            self._stop = StopFlag()  # each is for one call
            if self._cancelled:
                raise CancelledError("the client went away")
            self.put(Embedded(model.embed(tokens, self._stop)))
        self.put(End("stop", num_tokens, 0, None))


class EmbeddingsWriter:
    """The answer, which is not streamed."""

    def __init__(self, as_base64: bool) -> None:
        self._as_base64 = as_base64
        self._model, self._num_tokens = "", 0
        self._vectors = list[npt.NDArray[np.float32]]()

    def write(self, event: Event) -> list[ServerSentEvent]:
        match event:
            case Begin():
                self._model, self._num_tokens = event.model, event.prompt_tokens
            case Embedded():
                self._vectors.append(event.vector)
            case _:
                pass
        return []

    def whole(self) -> Mapping[str, Any]:
        data = [
            {"object": "embedding", "index": index, "embedding": self._encoded(vector)}
            for index, vector in enumerate(self._vectors)
        ]
        usage = {"prompt_tokens": self._num_tokens, "total_tokens": self._num_tokens}
        return {"object": "list", "data": data, "model": self._model, "usage": usage}

    def _encoded(self, vector: npt.NDArray[np.float32]) -> list[float] | str:
        if self._as_base64:
            return base64.b64encode(vector.astype("<f4").tobytes()).decode()
        return [float(value) for value in vector]
