"""Speculation: tokens that are drafted and computed as rows beside the next token, where it pays.

A pass of several rows has the bits of single tokens. The sampler chooses a token after each row;
while it chooses the token that was drafted, the next row is right as well, and that token costs no
pass of its own. The rows behind are dropped. So the text is what it would be without drafts.
"""

from collections.abc import Sequence
from itertools import accumulate
from operator import mul, sub
from pathlib import Path
from typing import NamedTuple

from haversack.cache import ngram
from haversack.cache.ngram import Drafter, NgramDrafter, NgramMemory
from haversack.devices.errors import HaversackError, PromptError
from haversack.devices.llama import MOST_ROWS
from haversack.devices.steps import MOST_STEPS, Watch
from haversack.devices.units import size_bytes
from haversack.edge.call import Call
from haversack.edge.draft_model import DraftModel, DrawnDrafter, MixedDrafter, ModelDrafter
from haversack.edge.draft_text import Vocabularies
from haversack.edge.gate import Gate
from haversack.edge.learning.learner import Learner

AUTO, OFF, NGRAM = "auto", "off", "ngram"
MOST_DRAFTED = MOST_ROWS - 1


_MODELS = (".gguf", ".onnx")
_LEARN = "+learn"


class Asked(NamedTuple):
    """How to draft: with the model `draft_from`, if one is given, and `fixed` tokens at any price;
    None where measurements decide. What drafts takes `most_bytes` at most, None: what it likes. The
    model `learns` from the texts if that is asked for."""

    fixed: int | None
    draft_from: Path | None = None
    learns: bool = False
    most_bytes: int | None = None

    @property
    def is_off(self) -> bool:
        """Return whether nothing is ever drafted."""
        return self.fixed == 0


def asked_for(speculate: object, memory: str | int | None = None) -> Asked:
    """Return what is asked for by "auto", "off", "ngram", which drafts 6 tokens at any price, or
    the path of a model; ":N" behind the last two means N tokens at any price, and "+learn" right
    behind a path that the model learns. `memory` is the size that what drafts may take. Raises
    PromptError, UnitError.
    """
    most_bytes, asked = None if memory is None else size_bytes(memory), _asked_for(speculate)
    if memory is not None and asked.is_off:
        raise PromptError(
            f"--speculate-memory is {memory}, but nothing is drafted with --speculate {OFF}: leave"
            " one of them out"
        )
    return asked._replace(most_bytes=most_bytes)


def _asked_for(speculate: object) -> Asked:
    text = str(speculate)
    if text in (AUTO, OFF, NGRAM):
        return Asked({AUTO: None, OFF: 0, NGRAM: MOST_DRAFTED}[text])
    kind, _, number = text.rpartition(":")
    if number.isdecimal() and 1 <= int(number) <= MOST_DRAFTED:
        if kind == NGRAM:
            return Asked(int(number))
        if kind.removesuffix(_LEARN).endswith(_MODELS):
            return Asked(int(number), Path(kind.removesuffix(_LEARN)), kind.endswith(_LEARN))
    if text.removesuffix(_LEARN).endswith(_MODELS):
        return Asked(None, Path(text.removesuffix(_LEARN)), text.endswith(_LEARN))
    raise PromptError(
        f"speculate is {text!r}: give auto, off, ngram, ngram:N with N from 1 to {MOST_DRAFTED}, or"
        " the path of a model that drafts, in GGUF (+learn: it learns) or ONNX"
    )


class PassCount(NamedTuple):
    """How many passes there were, and the seconds that they took with the choice of tokens."""

    number: int = 0
    taken_s: float = 0.0

    def __sub__(self, other: "PassCount") -> "PassCount":
        return PassCount(self.number - other.number, self.taken_s - other.taken_s)


class Helper(NamedTuple):
    """A model that drafts, what is known of its vocabulary and the target's, and what has it
    learn, if it does."""

    model: DraftModel
    vocabularies: Vocabularies
    learner: Learner | None = None


class Speculation:
    """Drafts tokens for the calls of a model. One thread at a time uses it, the one that drives."""

    def __init__(
        self,
        asked: Asked,
        memory: NgramMemory,
        text_tokens: int,
        why_never: str = "",
        helper: Helper | None = None,
    ) -> None:
        """With `why_never` nothing is ever drafted. `helper` drafts where `asked` names it."""
        self.memory = memory
        self.num_rounds = self.num_drafted = self.num_accepted = self.num_rows = 0
        self.why_paused = ""  # empty: it is not
        self.passes = [PassCount()] * (MOST_ROWS + 1)  # by rows; 0: one row behind several
        self._latest_rows = 1
        self._helper = helper
        self._gates = {"auto": Gate(), "fixed": Gate(), "model": Gate()}
        if helper is not None:
            self._gates["model"].draft_times.note(*helper.model.spent)
        self._text_tokens, self.why_never = text_tokens, why_never
        self._base = 1  # texts of the pass that drafts are looked for
        self._set(asked)

    def _set(self, asked: Asked) -> None:
        self._fixed, self._uses_model = asked.fixed, asked.draft_from is not None
        self.learner = self._helper.learner if asked.learns and self._helper else None
        kind = "fixed" if asked.fixed is not None else "model" if self._uses_model else "auto"
        self.gate = self._gates[kind]
        self._why_off = self.why_never or ("it is turned off" if asked.is_off else "")

    def begin_anew(self, asked: Asked) -> None:
        """Draft as `asked`, and forget what drafts came from. The times of passes are kept. Raises
        PromptError for a model that was not loaded."""
        path = None if self._helper is None else self._helper.model.path
        if asked.draft_from not in (None, path):
            raise PromptError(f"{asked.draft_from} was not loaded to draft: give it to load()")
        if asked.learns and (self._helper is None or self._helper.learner is None):
            raise PromptError(f"{asked.draft_from} was not loaded to learn: give +learn to load()")
        self.memory.clear()
        self._set(asked)

    @property
    def is_off(self) -> bool:
        """Return whether nothing is drafted, wherever it would pay."""
        return bool(self._why_off or self.why_paused)

    @property
    def why_closed(self) -> str:
        """Return why nothing is drafted now, in one line; empty if it is."""
        if self.is_off or self._fixed is not None:
            return self._why_off or self.why_paused
        return self.gate.why_closed

    def drafts(self, calls: Sequence[Call], most_rows: int) -> list[list[int]]:
        """Return the tokens to compute beside the next token of each of `calls`, which have a row
        each; none at all if the list is empty. A pass has at most `most_rows`."""
        if self.is_off:
            return []
        if (learner := self._learning) is not None:
            for call in calls:
                call.notes = call.notes or learner.notes(call.tokens)
        if not all(call.decoded_tokens for call in calls):
            self.gate.note_unusual()  # a text begins: what it needs is not in memory yet
        if self._fixed is None and not self.gate.looks(len(calls)):
            return []
        self._base = len(calls)
        most = min(MOST_DRAFTED if self._fixed is None else self._fixed, most_rows - len(calls))
        found = [self._draft(call, most) for call in calls]
        survivals = [list(accumulate(rates, mul)) for _, rates in found]
        ranked = sorted((-chance, idx) for idx, each in enumerate(survivals) for chance in each)
        del ranked[most_rows - len(calls) :]
        if self._fixed is None:
            del ranked[self.gate.num_worth(len(calls), [-chance for chance, _ in ranked]) :]
        chosen = [idx for _, idx in ranked]
        for idx, call in enumerate(calls):
            while len(call.offers) > chosen.count(idx):
                call.offers.pop()
        if not ranked:
            return []
        return [list(tokens[: chosen.count(idx)]) for idx, (tokens, _) in enumerate(found)]

    def _draft(self, call: Call, most: int) -> ngram.Draft:
        most = min(most, call.most_drafted)
        if most <= 0:
            return ngram.NONE
        if call.drafter is None:
            call.drafter = self._drafter_of(call)
        if self._helper is None:
            return call.drafter.propose(call.tokens, most)
        call.offers.clear()
        self._adapt(self._helper.model)
        model, before = self._helper.model, self._helper.model.spent
        try:
            return call.drafter.propose(call.tokens, most)
        except (HaversackError, OSError, MemoryError) as error:  # the text does not need it
            self._why_off = f"{model.path.name} cannot draft: {error}"
            return ngram.NONE
        finally:
            if model.spent != before:
                drafted, drafted_s, read, read_s = map(sub, model.spent, before)
                self.gate.note_drafter(int(drafted), drafted_s, int(read), read_s)

    def _adapt(self, model: DraftModel) -> None:
        """Have the model compute with what was learnt since the last call."""
        adapter = None if self.learner is None else self.learner.take_adapter()
        if adapter is not None and self.learner is not None:
            try:
                model.adapt(adapter)
            except (HaversackError, OSError) as error:
                self.learner.end(f"what was learnt cannot be used: {error}")

    def _drafter_of(self, call: Call) -> Drafter:
        ngrams = NgramDrafter(self.memory, self._text_tokens, call.num_batched, MOST_DRAFTED)
        if not self._uses_model or self._helper is None:
            return ngrams
        helper = self._helper
        draws = call.takes_offers and helper.vocabularies.are_same
        made = DrawnDrafter if draws else ModelDrafter
        model = made(helper.model, helper.vocabularies, call, self)
        return MixedDrafter(ngrams, model) if self._fixed is None else model

    def most_read(self) -> int:
        """As `Advice.most_read`."""
        return self.gate.most_read if self._fixed is None else self._text_tokens

    def pays(self, survivals: Sequence[float]) -> bool:
        """As `Advice.pays`."""
        return self._fixed is not None or self.gate.pays(self._base, survivals)

    def most_ahead(self, call: Call) -> int:
        """Return how many passes of a lone call may follow each other without `drafts`, after it
        gave none."""
        if self.is_off or call.most_drafted <= 0:
            return MOST_STEPS
        if self._fixed is not None or self._learning is not None:
            return 1
        return MOST_STEPS if self._watching(call) else min(self.gate.most_blind, MOST_STEPS)

    def watch(self, call: Call) -> Watch | None:
        """Return what ends these passes where a draft may pay; None where nothing looks for it."""
        drafter = self._watching(call)
        return None if drafter is None else drafter.watch(self.gate.needs(1))

    def _watching(self, call: Call) -> NgramDrafter | None:
        """Return what reads on while the passes of `call` follow each other. It must have read all
        of the text before."""
        if self.is_off or self._fixed is not None or self._learning is not None:
            return None
        drafter = call.drafter
        if not isinstance(drafter, NgramDrafter) or not self.gate.is_looking(1):
            return None
        return drafter if drafter.has_read(call.tokens) else None

    @property
    def _learning(self) -> Learner | None:
        """What looks at the logits of each token; None if nothing does, or does any more."""
        return None if self.learner is None or self.learner.why_not else self.learner

    def note_plain(self, num_passes: int, passes_s: float, first_s: float) -> None:
        """Count usual passes of one row that followed each other, and the time of the first."""
        self._count(1, 1, first_s)
        self._count(1, num_passes - 1, passes_s - first_s)
        if not self.is_off:
            self.gate.note_plain(num_passes, passes_s, first_s)

    def note(self, num_calls: int, num_drafted: int, num_right: int, pass_s: float) -> None:
        """Count a usual pass with a row of each of `num_calls` calls and `num_drafted` more, of
        which `num_right` were right."""
        self._count(num_calls + num_drafted, 1, pass_s)
        if num_drafted:
            self.num_rounds += 1
            self.num_drafted += num_drafted
            self.num_accepted += num_right
            self.num_rows += num_calls + num_drafted
        if not self.is_off:
            self.gate.note(num_calls, num_drafted, num_right, pass_s)

    def _count(self, num_rows: int, num_passes: int, taken_s: float) -> None:
        kind = 0 if num_rows == 1 < self._latest_rows else num_rows
        number, before_s = self.passes[kind]
        self.passes[kind] = PassCount(number + num_passes, before_s + taken_s)
        self._latest_rows = num_rows

    def note_unusual(self) -> None:
        """Count a pass that tells nothing of the others."""
        if not self.is_off:
            self.gate.note_unusual()


def speculation_of(
    asked: Asked,
    drops_parts: bool,
    text_tokens: int,
    helper: Helper | None = None,
    table_bytes: int = ngram.TABLE_BYTES,
) -> Speculation:
    """Return the speculation that is asked for. `drops_parts`: whether a sequence can lose its last
    tokens alone. The last `text_tokens` of a text are searched for what it repeats, and the table
    of all texts takes `table_bytes`."""
    why_never = ""
    if not drops_parts:
        why_never = "this model has recurrent layers, which cannot drop a wrong token"
    return Speculation(asked, NgramMemory(table_bytes), text_tokens, why_never, helper)
