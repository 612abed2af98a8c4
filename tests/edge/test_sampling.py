import dataclasses
from typing import Any

import pytest

from haversack.devices.errors import PromptError
from haversack.edge.sampling import MAX_SEED, Sampling


def test_defaults() -> None:
    sampling = Sampling()
    assert (sampling.temperature, sampling.top_k, sampling.top_p) == (0.8, 40, 0.95)
    assert (sampling.min_p, sampling.seed, sampling.stop) == (0.05, -1, ())
    assert sampling.constraint() is None
    assert not sampling.greedy


def test_greedy_is_temperature_zero() -> None:
    assert Sampling(temperature=0).greedy


def test_limits_are_allowed() -> None:
    Sampling(top_k=0, top_p=1, min_p=0, repeat_last_n=-1, seed=MAX_SEED, stop=("a", "é"))


def test_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        Sampling().temperature = 1  # type: ignore[misc]  # pyright: ignore[reportAttributeAccessIssue]


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("temperature", -0.1),
        ("temperature", float("nan")),
        ("temperature", float("inf")),
        ("temperature", "0.8"),
        ("temperature", True),
        ("temperature", 1e-40),  # logits divided by it overflow
        ("temperature", None),
        ("top_k", -1),
        ("top_k", 1.5),
        ("top_k", 1 << 40),
        ("top_p", 0),
        ("top_p", 1.01),
        ("min_p", -0.1),
        ("min_p", 2),
        ("repeat_penalty", 0),
        ("repeat_last_n", -2),
        ("frequency_penalty", float("-inf")),
        ("presence_penalty", "much"),
        ("seed", -2),
        ("seed", MAX_SEED + 1),
        ("stop", "ab"),
        ("stop", ["ab"]),
        ("stop", ("",)),
        ("stop", (1,)),
        ("stop", ("\ud800",)),
        ("grammar", ""),
        ("grammar", b'root ::= "a"'),
        ("grammar", "root ::= nowhere"),
        ("json_schema", "{"),
        ("json_schema", 5),
    ],
)
def test_out_of_range_is_named(setting: str, value: Any) -> None:
    with pytest.raises(PromptError, match=setting.replace("json_", "JSON ") + "|Undefined rule"):
        Sampling(**{setting: value})


def test_limits_are_told_as_they_are_written() -> None:
    with pytest.raises(PromptError, match=f"a whole number from -1 to {MAX_SEED}$"):
        Sampling(seed=MAX_SEED + 1)
    with pytest.raises(PromptError, match=r"a number from 0 to 1$"):
        Sampling(min_p=2)


def test_grammar_and_schema_exclude_each_other() -> None:
    with pytest.raises(PromptError, match="give one of them"):
        Sampling(grammar='root ::= "a"', json_schema={"type": "string"})


def test_a_grammar_or_a_schema_constrains() -> None:
    by_grammar = Sampling(grammar='root ::= "a"').constraint()
    assert by_grammar is not None and by_grammar.lark.endswith("R0: /a/\n")
    as_dict = Sampling(json_schema={"type": "boolean"}).constraint()
    assert (
        as_dict is not None and as_dict == Sampling(json_schema='{"type": "boolean"}').constraint()
    )


def test_a_byte_order_mark_is_no_content() -> None:
    for given in ({"grammar": 'root ::= "a"'}, {"json_schema": '{"const": 1}'}):
        marked = {name: "\ufeff" + text for name, text in given.items()}
        assert Sampling(**marked).constraint() == Sampling(**given).constraint()  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "penalty", [{"repeat_penalty": 1.1}, {"frequency_penalty": 0.5}, {"presence_penalty": -1}]
)
def test_a_penalty_that_looks_at_no_token_is_refused(penalty: dict[str, float]) -> None:
    Sampling(repeat_last_n=0)
    Sampling(repeat_last_n=-1, **penalty)  # type: ignore[arg-type]
    with pytest.raises(PromptError, match="penalties look at no token"):
        Sampling(repeat_last_n=0, **penalty)  # type: ignore[arg-type]
