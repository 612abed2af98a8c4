"""The training text: books, dialogues and instructions of a corpus folder, as documents.

A document is a string that starts a new context: plain text, or a dialogue as the chat template
writes it. Held-out documents are never trained on: the held-out books, and in every other file the
records whose id's CRC-32 is a multiple of 20.
"""

import gzip
import json
import random
import re
import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from haversack.devices.errors import StorageError
from haversack.tools.training.plain_answers import plain_answers
from haversack.tools.training.vocabulary import rendered_chat

BOOKS = "public_domain_books.jsonl.gz"
HELD_OUT_BOOKS = "public_domain_books_heldout.jsonl.gz"
TALES = ("standardebooks_children.jsonl.gz", "gitenberg_tales.jsonl.gz")
INSTRUCTIONS = "rasbt_instructions.jsonl.gz"
ORDERS = "taskmaster4.jsonl.gz"
SERVICES = "share-alike/sgd_train.jsonl.gz"
SMALL_TALK = "share-alike/topical_chat.jsonl.gz"
SIMPLE_CHAT = Path(__file__).parent / "simple_chat.jsonl"  # written for this model

_HELD_OUT_SHARE = 20
_HARDEST_ARI = 9.0  # the simplest two thirds of the books
_TELLINGS = 4  # of each tale in chats, each with a length and a request of its own
_SHORTEST_PASSAGE, _LONGEST_PASSAGE = 60, 230  # words of a story told in a chat
_REPLACED = str.maketrans(
    {"“": '"', "”": '"', "\u2018": "'", "\u2019": "'", "\u00a0": " ", "\u2060": ""}
)
_CAPITALS_OR_NUMERAL = re.compile(r"[^a-z]*")
_WORD = re.compile(r"[A-Za-z']+")
_BOOKS_OF_TALES = re.compile(
    r"Fairy (Book|Tales)|Mother West Wind|Burgess|Stories (Retold|to Tell)|Famous|Beacon|Raggedy"
    r"|Old Greek|Viking|Tanglewood|Great Americans"
    r"|Reddy|Buster|Lightfoot|Blacky|Bowser|Whitefoot"
)

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


@dataclass(frozen=True)
class Source:
    """Documents of one kind. `repeats` is how often each of them trains."""

    domain: str
    documents: list[str]
    repeats: int = 1


def story_sources(folder: Path) -> list[Source]:
    """Return what is trained first: the simpler chapters and tales, as plain text."""
    return [Source("stories", [text for text in _story_texts(folder) if ari(text) <= _HARDEST_ARI])]


def chat_sources(folder: Path, seed: int) -> list[Source]:
    """Return what is trained second: stories told on request, dialogues, instructions, simple
    chat."""
    asked = random.Random(seed)
    tales = list(_tale_texts(folder))
    return [
        Source("story requests", list(story_chats(tales * _TELLINGS, asked))),
        Source("small talk", _chats(_training(_records(folder / SMALL_TALK)))),
        Source("services", _chats(_training(_records(folder / SERVICES)))[::6]),
        Source("orders", _chats(_training(_records(folder / ORDERS)))),
        Source("instructions", _chats(_training(_records(folder / INSTRUCTIONS))), repeats=4),
        Source("simple chat", _chats(simple_chat()), repeats=20),
    ]


def manners_sources(folder: Path, seed: int) -> list[Source]:
    """Return what is trained last: plain answers, and every tale once more. Stories and dialogues
    that are new are among them, so that the model does not learn the earlier ones by heart."""
    asked = random.Random(seed + 1)
    hard = [text for text in _story_texts(folder) if ari(text) > _HARDEST_ARI]
    plain = [rendered_chat(_exchange(*exchange)) for exchange in plain_answers(asked)]
    return [
        Source("story requests", list(story_chats(_tale_texts(folder), asked))),
        Source("harder stories", hard[::12]),
        Source("services", _chats(_training(_records(folder / SERVICES)))[1::18]),
        Source("orders", _chats(_training(_records(folder / ORDERS)))[::6]),
        Source("instructions", _chats(_training(_records(folder / INSTRUCTIONS))), repeats=2),
        Source("simple chat", _chats(simple_chat()), repeats=10),
        Source("plain answers", plain, repeats=10),
    ]


def held_out_sources(folder: Path) -> list[Source]:
    """Return the held-out documents: of every domain trained on, and of three that are new to the
    model."""
    tales = [r for name in TALES for r in _records(folder / name) if held_out(r)]
    told = story_chats((body(record["text"]) for record in tales), random.Random(0))
    talk, services, orders, instructions = (
        _chats(filter(held_out, _records(folder / name)))
        for name in (SMALL_TALK, SERVICES, ORDERS, INSTRUCTIONS)
    )
    return [
        Source("held-out books", [body(r["text"]) for r in _records(folder / HELD_OUT_BOOKS)]),
        Source("held-out tales", [body(record["text"]) for record in tales]),
        Source("story requests", list(told)),
        Source("small talk", talk),
        Source("services", services),
        Source("orders", orders),
        Source("instructions", instructions),
        Source("commands (new domain)", _texts(folder / "tldr_pages.jsonl.gz")),
        Source("proposals (new domain)", _texts(folder / "peps_sample.jsonl.gz")),
        Source("wikipedia (new domain)", _lines(folder / "share-alike/wikitext2_test.txt.gz")),
    ]


def simple_chat() -> list[dict[str, Any]]:
    """Return the questions and answers written for this model."""
    return [json.loads(line) for line in SIMPLE_CHAT.read_text(encoding="utf-8").splitlines()]


def held_out(record: Mapping[str, Any]) -> bool:
    """Return whether this record is held out."""
    return zlib.crc32(str(record["id"]).encode()) % _HELD_OUT_SHARE == 0


# ---------------------------------------------------------------------- text
def clean(text: str) -> str:
    """Return `text` with straight quotes, one kind of dash and no invisible characters."""
    return text.translate(_REPLACED).replace("--", "—").replace("…", "...").strip()


def body(text: str) -> str:
    """Return clean text without the headings it starts with: short paragraphs that are no
    sentence."""
    paragraphs = clean(text).split("\n\n")
    while len(paragraphs) > 1 and _is_heading(paragraphs[0]):
        del paragraphs[0]
    return "\n\n".join(paragraphs)


def _is_heading(paragraph: str) -> bool:
    short = len(paragraph) < 80 and not paragraph.endswith((".", "!", "?", '"', "'", ":", ","))
    return short or bool(_CAPITALS_OR_NUMERAL.fullmatch(paragraph))


def ari(text: str) -> float:
    """Return the automated readability index: the school grade that can read it (Senter and Smith
    1967)."""
    words = text.split()
    sentences = sum(text.count(mark) for mark in ".!?") or 1
    letters = sum(map(len, words))
    return 4.71 * letters / max(1, len(words)) + 0.5 * len(words) / sentences - 21.43


# --------------------------------------------------------------------- chats
def story_chats(texts: Iterable[str], asked: random.Random) -> Iterator[str]:
    """Return each text's opening as a chat: a user asks for it and names one or two of its
    things."""
    for text in texts:
        passage = _opening(text, asked.randint(_SHORTEST_PASSAGE, _LONGEST_PASSAGE))
        topics = _topics(passage)
        if passage and topics:
            named = " and ".join(map(_with_article, topics[: asked.randint(1, 2)]))
            request = asked.choice(STORY_REQUESTS).format(named)
            yield rendered_chat(_exchange(request, passage))


def _opening(text: str, least_words: int) -> str:
    """Return the first paragraphs with `least_words` at least, or all; "" where they are too
    long."""
    taken: list[str] = []
    for paragraph in text.split("\n\n"):
        taken.append(paragraph)
        num_words = len(" ".join(taken).split())
        if num_words > 1.6 * _LONGEST_PASSAGE:
            return ""
        if num_words >= least_words:
            break
    return "\n\n".join(taken)


def _topics(passage: str) -> list[str]:
    """Return the things that a passage is about: topic words in the order of how often they
    occur."""
    counts: dict[str, int] = {}
    for word in _WORD.findall(passage.lower()):
        if word in TOPICS:
            counts[word] = counts.get(word, 0) + 1
    often = [word for word, count in counts.items() if count > 1]
    return sorted(often or list(counts), key=lambda word: -counts[word])[:2]


def _with_article(word: str) -> str:
    return word if word == "mice" else f"{'an' if word[0] in 'aeiou' else 'a'} {word}"


def _exchange(question: str, answer: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


def _messages(record: Mapping[str, Any]) -> list[dict[str, str]]:
    """Return the messages of a dialogue, or an instruction and its response as two."""
    if "messages" in record:
        return [{**m, "content": clean(m["content"])} for m in record["messages"]]
    question = "\n".join(filter(None, [record["instruction"], record.get("input")]))
    return _exchange(clean(question), clean(record["response"]))


def _chats(records: Iterable[Mapping[str, Any]]) -> list[str]:
    return [rendered_chat(_messages(record)) for record in records]


# --------------------------------------------------------------------- files
def _records(path: Path) -> Iterator[dict[str, Any]]:
    try:
        with gzip.open(path, "rt", encoding="utf-8") as lines:
            for line in lines:
                record = json.loads(line)
                if not record.get("dated_language"):
                    yield record
    except (OSError, ValueError) as error:
        raise StorageError(f"cannot read {path}: {error}; give the folder of the corpus") from error


def _training(records: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    return (record for record in records if not held_out(record))


def _story_texts(folder: Path) -> Iterator[str]:
    """Yield every tale and chapter that is trained on."""
    for name in TALES:
        yield from (body(record["text"]) for record in _training(_records(folder / name)))
    yield from (body(record["text"]) for record in _records(folder / BOOKS))


def _tale_texts(folder: Path) -> Iterator[str]:
    """Yield the texts that begin and end: fables and fairy tales, no chapters of novels."""
    for name in TALES:
        yield from (body(record["text"]) for record in _training(_records(folder / name)))
    for record in _records(folder / BOOKS):
        if _BOOKS_OF_TALES.search(record["book"]):
            yield body(record["text"])


def _texts(path: Path) -> list[str]:
    return [clean(record["text"]) for record in _records(path)]


def _lines(path: Path) -> list[str]:
    try:
        with gzip.open(path, "rt", encoding="utf-8") as lines:
            return [lines.read()]
    except OSError as error:
        raise StorageError(f"cannot read {path}: {error}; give the folder of the corpus") from error
