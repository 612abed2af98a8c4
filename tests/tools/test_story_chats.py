"""Chats made of stories: who asks for what, and what is told."""

import random

from haversack.tools.story_chats import (
    GO_ON,
    MORE_REQUESTS,
    exchange,
    passage_chats,
    retold_chats,
    story_chats,
)

TALE = "A Crow sat in a tree. A sly fox saw the Crow. The fox was hungry."
LONG_TALE = "\n\n".join([f"Once a poor miller sold his cow. {'He went on. ' * 80}"] * 4)
INSIDE = (
    "One day a young wolf went out to hunt in the hills. The wolf saw nothing." + " He ran." * 115
)
FURTHER = "The river was wide and deep. Nobody had ever crossed the river." + " It rained." * 115


def turns(chat: str) -> list[str]:
    """What was said in a chat, without who said it."""
    said = [turn.partition("\n")[2] for turn in chat.split("<|im_start|>")[1:]]
    return [turn.removesuffix("\n").removesuffix("<|im_end|>") for turn in said]


def test_a_story_is_told_on_request_about_what_is_in_it() -> None:
    (chat,) = story_chats([TALE], random.Random(1))
    request, answer = turns(chat)
    assert "a fox" in request or "a crow" in request
    assert answer == TALE
    assert list(story_chats(["Nothing happened."], random.Random(1))) == []


def test_somebody_asks_more_closely() -> None:
    requests = [turns(chat)[0] for chat in retold_chats([TALE] * 20, random.Random(1))]
    assert any("a sly fox" in request for request in requests)
    owned = [turns(chat)[0] for chat in retold_chats([LONG_TALE] * 20, random.Random(1))]
    assert any("a poor miller and his cow" in request for request in owned)


def test_somebody_in_four_wants_to_hear_what_follows() -> None:
    chats = [turns(chat) for chat in retold_chats([LONG_TALE] * 200, random.Random(1))]
    longer = [chat for chat in chats if len(chat) == 4]
    assert 30 < len(longer) < 70 and all(len(chat) in (2, 4) for chat in chats)
    for _, opening, more, following in longer:
        assert more in GO_ON
        assert LONG_TALE.startswith(f"{opening}\n\n{following}")


def test_a_passage_is_a_story_where_it_introduces_its_topic() -> None:
    text = "\n\n".join(["Chapter one began.", INSIDE, FURTHER])
    story, more = map(turns, passage_chats([text], random.Random(3)))
    assert "a young wolf" in story[0] and story[1] == INSIDE
    assert more[0] in [request.format("river") for request in MORE_REQUESTS]
    assert more[1] == FURTHER


def test_a_passage_that_cannot_open_a_story_is_left_out() -> None:
    spoken = '"The wolf is here," said the boy. ' + INSIDE
    pronoun = "He saw the wolf. " + INSIDE
    text = "\n\n".join(["Chapter one began.", spoken, pronoun])
    assert list(passage_chats([text], random.Random(1))) == []


def test_an_exchange_is_two_messages() -> None:
    assert [message["role"] for message in exchange("Why?", "Because.")] == ["user", "assistant"]
