"""Samplers choose from real logits: those of the known-answer model after "Once upon a time"."""

import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from haversack.devices import sampler
from haversack.devices.errors import ModelFileError, PromptError
from haversack.devices.grammar import Grammar, GrammarMatcher
from haversack.devices.llama import ContextShape, LlamaContext
from haversack.devices.llama_model import LlamaModel
from haversack.devices.sampler import SamplerChain, SamplerTables, chain_bytes
from haversack.edge.lark import gbnf_to_grammar


@pytest.fixture(scope="module")
def model(known_answer_model: Path) -> Iterator[LlamaModel]:
    loaded = LlamaModel(known_answer_model)
    yield loaded
    loaded.close()


@pytest.fixture(scope="module")
def context(model: LlamaModel) -> Iterator[LlamaContext]:
    """A context after a few words, which sampling does not change."""
    made = LlamaContext(model, ContextShape(ctx_tokens=128, batch_tokens=32, threads=1))
    made.decode(model.vocabulary.tokenize("Once upon a time, there was"))
    yield made
    made.close()


@pytest.fixture
def chain(model: LlamaModel) -> Iterator[SamplerChain]:
    made = SamplerChain(model.vocabulary)
    yield made
    made.close()
    made.close()  # may be called twice


def likeliest(context: LlamaContext, count: int) -> list[int]:
    """Return the ids of the `count` likeliest tokens, the likeliest first."""
    return [int(i) for i in np.argsort(-context.logits(), kind="stable")[:count]]


def softmax(logits: npt.NDArray[np.floating]) -> npt.NDArray[np.float64]:
    weights = np.exp(logits.astype(np.float64) - logits.max())
    return weights / weights.sum()


def drawn(chain: SamplerChain, context: LlamaContext, count: int) -> list[int]:
    return [chain.sample(context.logits()) for _ in range(count)]


def chain_with_seed(model: LlamaModel, seed: int) -> SamplerChain:
    chain = SamplerChain(model.vocabulary)
    chain.add_temperature(5.0)
    chain.add_random(seed)
    return chain


# ------------------------------------------------------------------- choosing
def test_greedy_takes_the_likeliest(chain: SamplerChain, context: LlamaContext) -> None:
    chain.add_greedy()
    assert drawn(chain, context, 3) == [int(context.logits().argmax())] * 3


@pytest.mark.parametrize("penalty", [1.0, 2.0], ids=["alone", "by llama.cpp's sampler"])
def test_greedy_takes_the_first_of_equal_ones(chain: SamplerChain, penalty: float) -> None:
    logits = np.zeros(chain._tables.ids.shape, np.float32)
    logits[[9, 7]] = 1
    chain.add_penalties(8, penalty, 0, 0)
    chain.add_greedy()
    assert chain.sample(logits) == 7


def test_a_seed_repeats(model: LlamaModel, context: LlamaContext) -> None:
    first, again, other = (drawn(chain_with_seed(model, seed), context, 30) for seed in (7, 7, 8))
    assert first == again
    assert first != other
    assert len(set(first)) > 1


def test_tokens_are_drawn_as_often_as_they_are_likely(
    chain: SamplerChain, context: LlamaContext
) -> None:
    chain.add_top_k(4)
    chain.add_temperature(2.0)
    chain.add_random(0)
    best = likeliest(context, 4)
    counts = Counter(drawn(chain, context, 4000))
    assert set(counts) == set(best)
    expected = softmax(context.logits()[best] / 2)
    for token, share in zip(best, expected, strict=True):
        assert abs(counts[token] / 4000 - share) < 0.04


def test_top_k_keeps_the_k_likeliest(chain: SamplerChain, context: LlamaContext) -> None:
    chain.add_top_k(3)
    chain.add_temperature(50.0)  # nearly even among what is left
    chain.add_random(0)
    assert set(drawn(chain, context, 200)) == set(likeliest(context, 3))


def test_top_k_0_keeps_all(chain: SamplerChain, context: LlamaContext) -> None:
    chain.add_top_k(0)
    chain.add_temperature(1000.0)
    chain.add_random(0)
    assert len(set(drawn(chain, context, 400))) > 200


def test_top_p_keeps_what_together_has_probability_p(
    chain: SamplerChain, context: LlamaContext
) -> None:
    shares = np.sort(softmax(context.logits()))[::-1].cumsum()
    chain.add_top_p(float(shares[1] + shares[2]) / 2)  # two are too little, three are enough
    chain.add_temperature(50.0)
    chain.add_random(0)
    assert set(drawn(chain, context, 200)) == set(likeliest(context, 3))


def test_min_p_keeps_what_is_likely_enough(chain: SamplerChain, context: LlamaContext) -> None:
    shares = np.sort(softmax(context.logits()))[::-1]
    chain.add_min_p(float(shares[2] + shares[3]) / 2 / float(shares[0]))
    chain.add_temperature(50.0)
    chain.add_random(0)
    assert set(drawn(chain, context, 200)) == set(likeliest(context, 3))


def greedy_with_penalties(
    logits: npt.NDArray[np.float32], last_n: int, penalties: tuple[float, float, float]
) -> list[int]:
    """20 tokens follow the definition of the penalties while the logits stay the same."""
    repeat, frequency, presence = penalties
    tokens: list[int] = []
    for _ in range(20):
        left = logits.copy()
        for token, count in Counter(tokens[-last_n:]).items():
            left[token] *= 1 / repeat if left[token] > 0 else repeat
            left[token] -= frequency * count + presence
        tokens.append(int(left.argmax()))
    return tokens


@pytest.mark.parametrize(
    "penalties", [(1e6, 0, 0), (1.5, 0, 0), (1, 1e3, 0), (1, 0, 1e3), (1, 1.5, 0), (1, 0, 1.5)]
)
def test_penalties_make_tokens_less_likely_to_come_again(
    penalties: tuple[float, float, float], chain: SamplerChain, context: LlamaContext
) -> None:
    chain.add_penalties(4, *penalties)
    chain.add_greedy()
    tokens = drawn(chain, context, 20)
    assert tokens == greedy_with_penalties(context.logits(), 4, penalties)
    if max(penalties) >= 1e3:
        assert all(len(set(tokens[i : i + 5])) == 5 for i in range(16))  # none of the last 4


def test_frequency_counts_how_often_and_presence_only_whether(
    model: LlamaModel, context: LlamaContext
) -> None:
    best, second = likeliest(context, 2)
    logits = context.logits()
    penalty = 0.6 * float(logits[best] - logits[second])
    for frequency, presence, expected in (
        (penalty, 0.0, [best, best, second]),
        (0.0, penalty, [best, best, best]),
    ):
        chain = SamplerChain(model.vocabulary)
        chain.add_penalties(64, 1.0, frequency, presence)
        chain.add_greedy()
        assert drawn(chain, context, 3) == expected
        chain.close()


def test_penalties_count_the_prompt(chain: SamplerChain, context: LlamaContext) -> None:
    best, second, third = likeliest(context, 3)
    chain.add_penalties(2, 1.0, 0.0, 1e3)
    chain.add_greedy()
    chain.follow([third, best, second])
    assert chain.sample(context.logits()) == third  # of the prompt, only the last 2 count


def test_penalties_that_change_nothing_need_no_prompt(
    chain: SamplerChain, context: LlamaContext
) -> None:
    chain.add_penalties(64, 1.0, 0.0, 0.0)
    chain.add_greedy()
    chain.follow(likeliest(context, 1))
    assert chain.sample(context.logits()) == likeliest(context, 1)[0]


@pytest.mark.parametrize("broken", [np.nan, np.inf])
def test_logits_that_are_no_numbers_are_named(
    broken: float, chain: SamplerChain, context: LlamaContext
) -> None:
    logits = context.logits()
    logits[len(logits) // 2] = broken
    chain.add_greedy()
    with pytest.raises(ModelFileError, match=r"not finite.*file is damaged.*overflowed") as caught:
        chain.sample(logits)
    assert "grammar" not in str(caught.value)


def test_what_sampling_takes_is_counted(model: LlamaModel) -> None:
    num_tokens = model.vocabulary.num_tokens
    tables_bytes = SamplerTables(num_tokens).num_bytes
    assert tables_bytes <= chain_bytes(num_tokens) == num_tokens * chain_bytes(1)


# ------------------------------------------------------------------- grammars
def written(chain: SamplerChain, model: LlamaModel, max_tokens: int = 40) -> str:
    """Return what the model writes from the start, as the chain chooses."""
    context = LlamaContext(model, ContextShape(ctx_tokens=128, batch_tokens=32, threads=1))
    context.decode(model.vocabulary.tokenize(""))
    text = b""
    for _ in range(max_tokens):
        token = chain.sample(context.logits())
        if model.vocabulary.ends(token):
            break
        text += model.vocabulary.piece(token)
        if chain.finished:
            break
        context.decode([token])
    context.close()
    return text.decode()


@pytest.mark.parametrize(
    ("grammar", "allowed"),
    [
        ('root ::= "Twice" | "Thrice"', {"Twice", "Thrice"}),
        ('root ::= "yes" | "no" "!"{2,2}', {"yes", "no!!"}),
        ('root ::= "caf\\u00e9 🎒"', {"café 🎒"}),  # no tokens of their own: byte by byte
        ('root ::= "{2,1}((" [(] # {9,1} (', {"{2,1}((("}),
    ],
)
def test_a_grammar_restricts(
    grammar: str, allowed: set[str], chain: SamplerChain, model: LlamaModel
) -> None:
    chain.add_grammar(gbnf_to_grammar(grammar))
    chain.add_greedy()
    assert written(chain, model) in allowed


def test_a_grammar_goes_with_other_samplers(model: LlamaModel) -> None:
    for seed in range(5):
        chain = SamplerChain(model.vocabulary)
        chain.add_grammar(gbnf_to_grammar("root ::= [0-9]{3}"))
        chain.add_top_k(40)
        chain.add_temperature(1.5)
        chain.add_random(seed)
        text = written(chain, model)
        chain.close()
        assert len(text) == 3 and text.isdigit()


@pytest.mark.parametrize(("grammar", "num_masks"), [("start: /(.|\\n)+/", 0), ("start: /z+q/", 1)])
def test_a_grammar_looks_at_the_likeliest_tokens_before_all(
    grammar: str,
    num_masks: int,
    chain: SamplerChain,
    context: LlamaContext,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """To look at every token of a vocabulary takes much longer."""
    allowed, masks = GrammarMatcher.allowed, list[GrammarMatcher]()

    def counted(matcher: GrammarMatcher) -> npt.NDArray[np.bool_]:
        masks.append(matcher)
        return allowed(matcher)

    monkeypatch.setattr(GrammarMatcher, "allowed", counted)
    chain.add_grammar(Grammar(grammar))
    chain.add_greedy()
    chain.sample(context.logits())
    assert len(masks) == num_masks


def test_a_left_recursive_grammar(chain: SamplerChain, model: LlamaModel) -> None:
    chain.add_grammar(gbnf_to_grammar('root ::= root "a" | "b"'))
    chain.add_greedy()
    assert set(written(chain, model).removeprefix("b")) <= {"a"}


def test_a_bad_grammar(chain: SamplerChain) -> None:
    with pytest.raises(PromptError, match="unknown name"):
        chain.add_grammar(Grammar("start: other"))


def drawn_counts(chain: SamplerChain, model: LlamaModel, context: LlamaContext) -> Counter[int]:
    """Count the tokens drawn as the first of a text, each time with the grammar at its start."""
    counts = Counter[int]()
    for _ in range(1500):
        chain.add_grammar(Grammar("start: /[ a-m]+/"))
        counts[chain.sample(context.logits())] += 1
    return counts


@pytest.mark.parametrize("shown", [True, False])
def test_a_grammar_keeps_the_odds_of_what_it_allows(
    shown: bool,
    chain: SamplerChain,
    model: LlamaModel,
    context: LlamaContext,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It holds whether the grammar gets the likeliest tokens one by one or all at once."""
    if not shown:
        monkeypatch.setattr(sampler, "_MOST_SHOWN", 0)
    chain.add_top_k(6)
    chain.add_temperature(2.0)
    chain.add_random(1)
    counts = drawn_counts(chain, model, context)
    pieces = map(model.vocabulary.piece, likeliest(context, model.vocabulary.num_tokens))
    ranked = zip(likeliest(context, model.vocabulary.num_tokens), pieces, strict=True)
    allowed = [token for token, piece in ranked if re.fullmatch(rb"[ a-m]+", piece)]
    assert set(counts) <= set(allowed[:6])
    expected = softmax(context.logits()[allowed[:6]] / 2)
    for token, share in zip(allowed[:6], expected, strict=True):
        assert abs(counts[token] / 1500 - share) < 0.06


@pytest.mark.parametrize("grammar", ["root ::= [z-a]", 'root ::= root "a"'])
def test_a_grammar_that_no_token_satisfies(
    grammar: str, chain: SamplerChain, context: LlamaContext
) -> None:
    chain.add_grammar(gbnf_to_grammar(grammar))
    chain.add_greedy()
    with pytest.raises(PromptError, match="allows no token of the vocabulary here"):
        chain.sample(context.logits())


def test_nested_groups_as_deep_as_people_write_them(chain: SamplerChain, model: LlamaModel) -> None:
    chain.add_grammar(gbnf_to_grammar("root ::= " + "(" * 100 + '"a"' + ")" * 100))
    chain.add_greedy()
    assert written(chain, model) == "a"
