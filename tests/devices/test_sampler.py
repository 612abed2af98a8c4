"""Samplers choose from real logits: those of the known-answer model after "Once upon a time"."""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from haversack.devices.errors import PromptError
from haversack.devices.llama import ContextShape, LlamaContext, LlamaModel
from haversack.devices.sampler import SamplerChain


@pytest.fixture(scope="module")
def model(known_answer_model: Path) -> Iterator[LlamaModel]:
    loaded = LlamaModel(known_answer_model)
    yield loaded
    loaded.close()


@pytest.fixture(scope="module")
def context(model: LlamaModel) -> Iterator[LlamaContext]:
    """Stands after a few words; sampling leaves it there."""
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
    """The ids of the `count` likeliest tokens, the first one first."""
    return [int(i) for i in np.argsort(-context.logits(), kind="stable")[:count]]


def softmax(logits: npt.NDArray[np.floating]) -> npt.NDArray[np.float64]:
    weights = np.exp(logits.astype(np.float64) - logits.max())
    return weights / weights.sum()


def drawn(chain: SamplerChain, context: LlamaContext, count: int) -> list[int]:
    return [chain.sample(context) for _ in range(count)]


def chain_with_seed(model: LlamaModel, seed: int) -> SamplerChain:
    chain = SamplerChain(model.vocabulary)
    chain.add_temperature(5.0)
    chain.add_random(seed)
    return chain


# ------------------------------------------------------------------- choosing
def test_greedy_takes_the_likeliest(chain: SamplerChain, context: LlamaContext) -> None:
    chain.add_greedy()
    assert drawn(chain, context, 3) == [int(context.logits().argmax())] * 3


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
    """20 tokens as the penalties are defined, the logits staying what they are."""
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


# ------------------------------------------------------------------- grammars
def written(chain: SamplerChain, model: LlamaModel, max_tokens: int = 40) -> str:
    """What the model writes from the start, as the chain chooses."""
    context = LlamaContext(model, ContextShape(ctx_tokens=128, batch_tokens=32, threads=1))
    context.decode(model.vocabulary.tokenize(""))
    text = b""
    for _ in range(max_tokens):
        token = chain.sample(context)
        if model.vocabulary.ends(token):
            break
        text += model.vocabulary.piece(token)
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
    chain.add_grammar(grammar)
    chain.add_greedy()
    assert written(chain, model) in allowed


def test_a_grammar_goes_with_other_samplers(model: LlamaModel) -> None:
    for seed in range(5):
        chain = SamplerChain(model.vocabulary)
        chain.add_grammar("root ::= [0-9]{3}")
        chain.add_top_k(40)
        chain.add_temperature(1.5)
        chain.add_random(seed)
        text = written(chain, model)
        chain.close()
        assert len(text) == 3 and text.isdigit()


@pytest.mark.parametrize(
    ("grammar", "message"),
    [
        ("", "the grammar is empty"),
        (" \n", "the grammar is empty"),
        ('root ::= "a\0b"', "holds a null character"),
        ("this is no grammar", "the grammar does not parse: .*needs a rule `root`"),
        ('start ::= "a"', "does not contain a 'root' symbol"),
        ("root ::= other", "the grammar does not parse"),
        ('root ::= "a', "the grammar does not parse"),
        ('root ::= root "a" | "b"', "left recursion"),
        ('root ::= "a"{3,2}', r"repeats \{3,2\}: the first must not be larger"),  # would never end
        ("root ::= " + "(" * 200 + '"a"' + ")" * 200, "nests 200 parentheses: at most 100"),
        ('root ::= "a"{99999}', "the grammar does not parse"),
    ],
)
def test_a_bad_grammar(grammar: str, message: str, chain: SamplerChain) -> None:
    with pytest.raises(PromptError, match=message):
        chain.add_grammar(grammar)


@pytest.mark.parametrize("grammar", ["root ::= [z-a]", 'root ::= "\\x00"'])
def test_a_grammar_that_no_token_satisfies(
    grammar: str, chain: SamplerChain, context: LlamaContext
) -> None:
    chain.add_grammar(grammar)
    chain.add_greedy()
    with pytest.raises(PromptError, match="allows no token of the vocabulary here"):
        chain.sample(context)


def test_nested_groups_as_deep_as_people_write_them(chain: SamplerChain, model: LlamaModel) -> None:
    chain.add_grammar("root ::= " + "(" * 100 + '"a"' + ")" * 100)
    chain.add_greedy()
    assert written(chain, model) == "a"
