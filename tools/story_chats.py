"""Chats made of stories: somebody asks for the things of a tale, and the tale is the answer."""

import random
import re
from collections.abc import Iterable, Iterator, Sequence

from haversack.tools.vocabulary import rendered_chat

Message = dict[str, str]

STORY_REQUESTS = (
    "Tell me a story about {}.",
    "Tell me a short story about {}.",
    "Write a story about {}.",
    "Can you tell me a story about {}?",
    "Please tell me a tale about {}.",
    "I would like to hear a story about {}.",
)
TOPICS = frozenset(
    """
    ant apple baby bear bee bell bird boat boy bridge brother bull cake candle castle
    cat cave child church clock cloak cloud coat cock cottage cow crab crow crown daughter deer
    doctor dog doll donkey dove dragon duck dwarf eagle egg elephant fairy farm
    farmer father fire fish fisherman flower forest fox frog garden ghost giant gift girl goat gold
    goose grandmother grasshopper hare hat hen hill horse house hunter island jewel key king
    kitchen kitten knight ladder lady lamb lamp letter lion magician man market
    merchant mice miller mirror money monkey moon mother mountain mouse nest nightingale ocean
    orchard owl ox palace parrot peasant pig pirate pond prince princess puppy
    queen rabbit rain raven ring river robber robin sailor school sea serpent servant
    sheep shepherd ship shoe shoemaker sister snake snow soldier song sparrow spider squirrel
    star storm stranger sun swan sword tailor teacher thief tiger toad tower town toy
    treasure tree turtle uncle village wagon water whale widow wife wind
    winter witch wolf woman wood woodcutter
    """.split()
)
MORE_REQUESTS = (
    "What happened to the {}?",
    "Go on with the story about the {}.",
    "Tell me more about the {}.",
    "What did the {} do then?",
)
GO_ON = ("Go on.", "Please go on.", "And then?", "What happened then?", "Continue.")

_SHORTEST_PASSAGE, _LONGEST_PASSAGE = 60, 230  # words told in an answer
_WORD = re.compile(r"[A-Za-z']+")
_SENTENCE = re.compile(r"[^.!?]*[.!?]")
_TOPIC = re.compile(rf"\b({'|'.join(sorted(TOPICS))})\b")
_INTRODUCED = re.compile(rf"\b(?:an?|certain)(?: [a-z]+){{0,2}} ({'|'.join(sorted(TOPICS))})\b")
_OPENER = re.compile(
    r"(The|An?|One|Once|There|Long|In|When|As|At|On|Every|Some|Two|Three|Many|Near|Far|Not) "
)
_QUALITY = (
    "old|little|poor|young|rich|wise|great|brave|clever|beautiful|wicked|lazy|big|small|kind|good"
    "|white|black|golden|proud|hungry|fat|sly|strange|dear|foolish|merry|grand|wild"
)


def story_chats(texts: Iterable[str], asked: random.Random) -> Iterator[str]:
    """Each text's opening, told at the request of somebody who names one or two of its things."""
    for text in texts:
        passage = "\n\n".join(_passage(text.split("\n\n"), asked))
        topics = _topics(passage)
        if passage and topics:
            named = " and ".join(map(_with_article, topics[: asked.randint(1, 2)]))
            request = asked.choice(STORY_REQUESTS).format(named)
            yield rendered_chat(exchange(request, passage))


def retold_chats(texts: Iterable[str], asked: random.Random) -> Iterator[str]:
    """Each text's opening, asked for more closely: "a poor fisherman and his wife". Somebody in
    four wants to hear what follows."""
    for text in texts:
        paragraphs = text.split("\n\n")
        opening = _passage(paragraphs, asked)
        passage = "\n\n".join(opening)
        topics = _topics(passage)
        if not topics:
            continue
        named = _named(topics[: asked.randint(1, 2)], passage)
        chat = exchange(asked.choice(STORY_REQUESTS).format(named), passage)
        following = _passage(paragraphs[len(opening) :], asked)
        if following and asked.random() < 0.25:
            chat += exchange(asked.choice(GO_ON), "\n\n".join(following))
        yield rendered_chat(chat)


def passage_chats(texts: Iterable[str], asked: random.Random) -> Iterator[str]:
    """Passages from inside the texts whose first sentence names what they are about: asked for as a
    story where it is introduced there, and else by somebody who has heard of it."""
    for text in texts:
        paragraphs = text.split("\n\n")
        index = 1
        while index < len(paragraphs):
            topic = _opening_topic(paragraphs[index])
            taken = _passage(paragraphs[index:], asked) if topic else []
            passage = "\n\n".join(taken)
            if passage.lower().count(topic) > 1:
                yield rendered_chat(exchange(_request(topic, passage, asked), passage))
            index += max(1, len(taken))


def exchange(question: str, answer: str) -> list[Message]:
    """A question and its answer as messages."""
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


# ------------------------------------------------------------------ passages
def _passage(paragraphs: Sequence[str], asked: random.Random) -> list[str]:
    """The first paragraphs, of as many words as `asked` draws or all; none where too long."""
    least_words = asked.randint(_SHORTEST_PASSAGE, _LONGEST_PASSAGE)
    num_words = 0
    for count, paragraph in enumerate(paragraphs, 1):
        num_words += len(paragraph.split())
        if num_words > 1.6 * _LONGEST_PASSAGE:
            return []
        if num_words >= least_words:
            return list(paragraphs[:count])
    return list(paragraphs)


def _opening_topic(paragraph: str) -> str:
    """What the first sentence is about, if the paragraph can open a story; else ""."""
    if len(paragraph) < 100 or not _OPENER.match(paragraph) or '"' in paragraph[:150]:
        return ""
    sentence = _SENTENCE.match(paragraph)
    found = _TOPIC.search(sentence[0]) if sentence else None
    return found[1] if found else ""


def _request(topic: str, passage: str, asked: random.Random) -> str:
    sentence = _SENTENCE.match(passage)
    introduced = _INTRODUCED.search(sentence[0]) if sentence else None
    if introduced and introduced[1] == topic:
        return asked.choice(STORY_REQUESTS).format(_named([topic], passage))
    return asked.choice(MORE_REQUESTS).format(topic)


# -------------------------------------------------------------------- topics
def _topics(passage: str) -> list[str]:
    """The things a passage is about: topic words in the order of how often they occur."""
    counts: dict[str, int] = {}
    for word in _WORD.findall(passage.lower()):
        if word in TOPICS:
            counts[word] = counts.get(word, 0) + 1
    often = [word for word, count in counts.items() if count > 1]
    return sorted(often or list(counts), key=lambda word: -counts[word])[:2]


def _named(topics: Sequence[str], passage: str) -> str:
    """The topics as the passage has them: with an adjective, the second with its owner."""
    named = [_with_article(_qualified(topics[0], passage))]
    for word in topics[1:]:
        owned = re.search(rf"\b(?:his|her|their) {word}\b", passage)
        named.append(owned[0] if owned else _with_article(_qualified(word, passage)))
    return " and ".join(named)


def _qualified(word: str, passage: str) -> str:
    found = re.search(rf"\b(?:{_QUALITY}) {word}\b", passage)
    return found[0] if found else word


def _with_article(words: str) -> str:
    if words == "mice":
        return words
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"
