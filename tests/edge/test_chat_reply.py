"""A chat tells reasoning from the answer, and repeats the answer alone."""

import io
from collections.abc import Sequence
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import pytest

from haversack import edge
from haversack.edge.chat_pipe import write_reply
from haversack.edge.chat_reply import Reply, begin_reply
from haversack.edge.replies import Piece, ReplyReader, reply_format
from haversack.edge.templates import ChatTemplate

THINKING = "{{ messages[0]['content'] }}<think>"  # as those whose prompt begins the reasoning
CHANNELS = "<|channel|>analysis"  # as gpt-oss writes


class Written:
    """Stands for a generation of these texts."""

    def __init__(self, texts: Sequence[str]) -> None:
        self._texts = texts

    def __iter__(self) -> Any:
        return iter(self._texts)

    def close(self) -> None:
        """Nothing is held."""


def reply_of(template: str, prompt: str, *texts: str) -> Reply:
    generation: Any = Written(texts)
    return Reply(generation, ReplyReader(reply_format(template).without_calls(), prompt, {}))


def written(reply: Reply, *, with_reasoning: bool) -> str:
    with redirect_stdout(io.StringIO()) as out:
        write_reply(reply, with_reasoning=with_reasoning)
    return out.getvalue()


def test_marks_are_never_part_of_it() -> None:
    reply = reply_of("<think>", "", "<thi", "nk>I see", " it.</think>\n\nIt", " is <b>.")
    first, *_ = reply
    assert first == Piece("I see", is_reasoning=True)
    assert reply.answer == "It is <b>."
    texts = (
        "<|channel|>analysis<|message|>Hm",
        "m.<|end|><|start|>assistant<|channel|>final<|message|>Yes.",
    )
    assert written(reply_of(CHANNELS, "", *texts), with_reasoning=False) == "Yes.\n"
    assert written(reply_of(CHANNELS, "", *texts), with_reasoning=True) == "Hmm.\n\nYes.\n"


def test_a_prompt_may_begin_the_reasoning() -> None:
    reply = reply_of("<think>", "Why?<think>\n", "Because", ".</think>", "So.")
    assert [piece.is_reasoning for piece in reply] == [True, True, False]
    assert reply.answer == "So."


def test_a_reply_that_stops_in_its_reasoning_has_no_answer(
    known_answer_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    template = ChatTemplate(THINKING, bos="<s>", eos="</s>")
    monkeypatch.setattr(edge.Model, "chat_template", lambda _: template)
    with edge.load(known_answer_model, ram="1GiB", ctx=128, threads=1) as model:
        message = {"role": "user", "content": "Once upon"}
        reply = begin_reply(model, [message], 4, edge.Sampling(temperature=0))
        assert "".join(piece.text for piece in reply if piece.is_reasoning)
        assert reply.answer == "" and reply.generation.finish_reason == "length"
        schema = edge.Sampling(temperature=0, grammar='root ::= "<think>"')
        reply = begin_reply(model, [message], 8, schema)  # what a grammar asks for is all answer
        assert "".join(piece.text for piece in reply) == reply.answer == "<think>"
