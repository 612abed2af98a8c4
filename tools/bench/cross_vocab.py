"""How many drafted tokens are right where the drafter has another vocabulary than the model?

    python -m haversack.tools.bench.cross_vocab MODEL DRAFTER --texts PATH [--held-out 8]
        [--learn 32] [--tokens 64] [--draft 4] [--ctx 512] [--adapt 2] [--csv FILE]

MODEL continues prompts greedily. At each place of its texts DRAFTER drafts, and what the drafted
tokens stand for is compared with the text: by tokens with the same text alone (the intersection),
with runs learnt while the held-out prompts go on, and with runs learnt before from other prompts as
well. PATH is as `haversack.tools.bench.speculation --prompts` takes it: the last prompts are held
out. The drafts are the same for all three, so that only what is known of the vocabularies differs.
With --adapt the drafter then learns from the other prompts' texts, so many times from each, as it
does while it drafts with `+learn`, and drafts again, with all runs.
"""

import argparse
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

from haversack import edge
from haversack.cache.cross_vocab import PairStore, translated
from haversack.cache.ngram import Draft
from haversack.devices.errors import ModelFileError
from haversack.devices.llama_model import LlamaModel
from haversack.edge.draft_model import DraftModel
from haversack.edge.draft_text import OtherText, Vocabularies
from haversack.edge.drafter_plan import plan_drafter
from haversack.edge.learning.adapter_file import write_adapter
from haversack.edge.learning.decoder_file import read_decoder
from haversack.edge.learning.lessons import (
    CONTEXT_TOKENS,
    NEW_TOKENS,
    Lesson,
    Likely,
    Maker,
    likely,
)
from haversack.tools.bench.speculation import read_sets
from haversack.tools.command_line import give_table, positive, tool

_MORE = 2  # draft tokens for a target token, at most


@dataclass
class Counts:
    """Drafts, the target tokens that they proposed, and those that were right."""

    drafts: int = 0
    proposed: int = 0
    right: int = 0
    pairs: PairStore | None = field(default=None)

    def row(self, name: str) -> dict[str, str]:
        """Return the row of the table."""
        pairs = 0 if self.pairs is None else len(self.pairs)
        return {
            "mapping": name,
            "drafts": str(self.drafts),
            "proposed a draft": f"{self.proposed / max(1, self.drafts):.3f}",
            "right a draft": f"{self.right / max(1, self.drafts):.3f}",
            "right of proposed": f"{self.right / max(1, self.proposed):.1%}",
            "pairs": str(pairs),
        }


class Text(NamedTuple):
    """The tokens of a prompt and its continuation, how many are the prompt's, and what the model
    thought of each of the others, if it was asked for."""

    tokens: list[int]
    first: int
    thoughts: list[Likely]


def texts_of(
    path: Path, prompts: Sequence[str], num_tokens: int, ctx: int, thinks: bool = False
) -> Iterator[Text]:
    """Yield the text of each prompt; with what was thought of its tokens if the model `thinks`."""
    with edge.load(path, ctx=ctx, options=edge.LoadOptions(speculate="auto")) as model:
        for prompt in prompts:
            given = model.tokenize(prompt)[: ctx - num_tokens]
            generation = model.generate(given, num_tokens, temperature=0)
            assert generation.text is not None
            tokens = [*given, *generation.tokens]
            wanted = thinks and generation.tokens
            rows = model.iter_logits(tokens[:-1], len(given)) if wanted else ()
            thoughts = [likely(row) for row in rows][: len(generation.tokens)]
            yield Text(tokens, len(given), thoughts)


def greedy(model: DraftModel, tokens: list[int], number: int) -> Draft:
    """Return the drafter's likeliest tokens after `tokens`."""
    found, rates = list[int](), list[float]()
    while len(found) < number:
        token, rate = model.next_token(0, [*tokens, *found])
        found.append(token)
        rates.append(rate)
    return Draft(found, rates)


def measure(
    model: DraftModel, learning: Vocabularies, text: Sequence[int], first: int, most: int
) -> Iterator[tuple[Draft, Sequence[int]]]:
    """Yield at each place of a text behind `first` the draft there, and how the text goes on."""
    cut = OtherText(learning, 0)
    for place in range(first, len(text)):
        tokens = cut.follow(text[:place])
        if len(tokens) + _MORE * most > model.window_tokens:
            return
        yield greedy(model, tokens, _MORE * most), text[place : place + most]


def count(counts: Counts, draft: Draft, known: Vocabularies, then: Sequence[int]) -> None:
    """Count what is right of a draft."""
    found, _ = translated(draft, known.same, counts.pairs)
    proposed = list(found.tokens[: len(then)])
    right = next((i for i, token in enumerate(proposed) if token != then[i]), len(proposed))
    counts.drafts, counts.proposed = counts.drafts + 1, counts.proposed + len(proposed)
    counts.right += right


def lessons_of(texts: Sequence[Text], known: Vocabularies) -> Iterator[Lesson]:
    """Yield the lessons of texts."""
    maker = Maker(known)
    for text in texts:
        for begin in range(0, len(text.thoughts), NEW_TOKENS):
            thoughts = text.thoughts[begin : begin + NEW_TOKENS]
            first = text.first + begin
            part = text.tokens[max(0, first - CONTEXT_TOKENS) : first + len(thoughts)]
            lesson = maker.made(part, thoughts)
            if lesson is not None:
                yield lesson


def adapt(model: DraftModel, lessons: Sequence[Lesson], times: int) -> None:
    """Have the drafter learn from the lessons, so many times from each, and compute with that."""
    import torch

    from haversack.edge.learning.decoder import AdaptedDecoder
    from haversack.edge.learning.trainer import Trainer

    torch.set_num_threads(1)
    decoder = read_decoder(model.path)
    trainer = Trainer(AdaptedDecoder(decoder))
    for lesson in list(lessons) * times:
        trainer.take(lesson)
    with TemporaryDirectory() as folder:
        path = Path(folder) / "learnt.adapter"
        write_adapter(path, decoder.architecture, "bench", trainer.decoder.changes())
        model.adapt(path)


@tool
def main(arguments: Sequence[str] | None) -> int:
    """Return 0 if learnt runs make more tokens right than the intersection alone."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", type=Path)
    parser.add_argument("drafter", type=Path)
    parser.add_argument("--texts", type=Path, action="append", default=[], metavar="PATH")
    for name, default in (("held-out", 8), ("learn", 32), ("tokens", 64), ("draft", 4)):
        parser.add_argument(f"--{name}", type=positive, default=default)
    parser.add_argument("--ctx", type=positive, default=512)
    parser.add_argument("--adapt", type=positive, default=0, metavar="TIMES")
    parser.add_argument("--csv", type=Path)
    given = parser.parse_args(arguments)
    sets = read_sets(given.texts, given.held_out + given.learn, []).values()
    prompts = [text for each in sets for text in each][: given.held_out + given.learn]
    if len(prompts) <= given.held_out:
        given.held_out = max(1, len(prompts) // 2)
    thinks = bool(given.adapt)
    texts = list(texts_of(given.model, prompts, given.tokens, given.ctx, thinks))
    learnt, held_out = texts[: -given.held_out], texts[-given.held_out :]
    shape = edge.plan(given.model, ctx=given.ctx).shape
    model = DraftModel(plan_drafter(given.drafter, shape))
    target = LlamaModel(given.model, dry=True)
    try:
        rows = _rows(model, target, (learnt, held_out), given.draft, given.adapt)
    finally:
        target.close()
        model.close()
    give_table(rows, given.csv)
    alone, _, *better = (float(row["right a draft"]) for row in rows)
    return 0 if [alone, *better] == sorted({alone, *better}) else 1


def _rows(
    model: DraftModel,
    target: LlamaModel,
    texts: tuple[Sequence[Text], Sequence[Text]],
    most: int,
    times: int,
) -> list[dict[str, str]]:
    vocabulary, (learnt, held_out) = target.vocabulary, texts
    both = Vocabularies(vocabulary, model.model.vocabulary, PairStore())
    if both.are_same:
        raise ModelFileError("both have the same vocabulary: give another drafter")
    known, again = (_taught(both, learnt) for _ in range(2))
    counts = [Counts(), Counts(pairs=both.pairs), Counts(pairs=known.pairs)]
    _count_all(counts, model, (both, known), held_out, most)
    names = ["same text alone", "runs learnt meanwhile", "runs learnt before too"]
    if times:
        adapt(model, list(lessons_of(learnt, again)), times)
        counts.append(Counts(pairs=again.pairs))
        _count_all(counts[-1:], model, (again,), held_out, most)
        names.append("adapted, all runs")
    return [each.row(name) for each, name in zip(counts, names, strict=True)]


def _taught(both: Vocabularies, texts: Sequence[Text]) -> Vocabularies:
    """Return what is known of both vocabularies after some texts."""
    known = Vocabularies(both.target, both.draft, PairStore())
    for text in texts:
        OtherText(known, 0).follow(text.tokens)
    return known


def _count_all(
    counts: Sequence[Counts],
    model: DraftModel,
    learning: Sequence[Vocabularies],
    texts: Sequence[Text],
    most: int,
) -> None:
    """Count the drafts of all places of texts. What is known of the vocabularies grows on the
    way."""
    first, *others = learning
    for text in texts:
        cuts = [OtherText(each, 0) for each in others]
        places = measure(model, first, text.tokens, text.first, most)
        for place, (draft, then) in enumerate(places, start=text.first):
            for cut in cuts:
                cut.follow(text.tokens[:place])
            for each in counts:
                count(each, draft, first, then)


if __name__ == "__main__":
    sys.exit(main())
