"""What does a grammar cost? Each token is chosen with and without it, from the same logits.

    python -m haversack.tools.bench.grammar MODEL [--tokens 64] [--top-k 40]

A token's time is that of computing its logits and choosing it without a grammar. Bound: a grammar
adds at most 0.10 of it, the mean of all tokens but the first. The first token builds a table of the
vocabulary, once for a model; its time is printed beside the bound.
"""

import argparse
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from haversack import edge
from haversack.devices.llama import ContextShape, LlamaContext
from haversack.devices.llama_model import LlamaModel
from haversack.devices.sampler import SamplerChain
from haversack.edge.generation import sampler_chain
from haversack.tools.command_line import positive, tool, verdict

BOUND = 0.10
PROMPT = "A person, described in JSON:\n"
_PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 60},
        "age": {"type": "integer", "minimum": 0},
        "hobbies": {"type": "array", "items": {"type": "string"}, "minItems": 20},
    },
    "required": ["name", "age", "hobbies"],
}
_JSON = r"""
root ::= object
value ::= object | array | string | number | ("true" | "false" | "null") ws
object ::= "{" ws (string ":" ws value ("," ws string ":" ws value)*)? "}" ws
array ::= "[" ws (value ("," ws value)*)? "]" ws
string ::= "\"" ([^"\\\x7F\x00-\x1F] | "\\" (["\\bfnrt] | "u" [0-9a-fA-F]{4}))* "\"" ws
number ::= "-"? ([0-9] | [1-9] [0-9]{0,15}) ("." [0-9]+)? ws
ws ::= | " " | "\n" [ \t]{0,20}
"""
CONSTRAINTS = {
    "schema": edge.Sampling(json_schema=_PERSON),
    "JSON in GBNF": edge.Sampling(grammar=_JSON),
    "all but one letter": edge.Sampling(grammar="root ::= [^x]+"),
}


class Cost(NamedTuple):
    """Seconds of one token: its logits, choosing it without a grammar, and with one."""

    decode_s: float
    plain_s: float
    constrained_s: float


def costs(
    model: LlamaModel, context: LlamaContext, sampling: edge.Sampling, num_tokens: int
) -> Iterator[Cost]:
    """Yield the cost of each token of a text that follows a grammar, until the text is complete."""
    free = edge.Sampling(temperature=sampling.temperature, top_k=sampling.top_k)
    context.forget(0)
    context.decode(model.vocabulary.tokenize(PROMPT))
    start = time.perf_counter()
    plain = sampler_chain(free, context.ctx_tokens, model.vocabulary, seed=1)
    constrained = sampler_chain(sampling, context.ctx_tokens, model.vocabulary, seed=1)
    setup_s, decode_s = time.perf_counter() - start, 0.0
    for _ in range(num_tokens):
        plain_s, _ = _timed(plain, context)
        constrained_s, token = _timed(constrained, context)
        yield Cost(decode_s, plain_s, constrained_s + setup_s)
        if model.vocabulary.ends(token) or constrained.finished:
            break
        start = time.perf_counter()
        context.decode([token])
        setup_s, decode_s = 0.0, time.perf_counter() - start
    plain.close()
    constrained.close()


def _timed(chain: SamplerChain, context: LlamaContext) -> tuple[float, int]:
    start = time.perf_counter()
    token = chain.sample(context.borrow_logits())
    return time.perf_counter() - start, token


def share(later: Sequence[Cost]) -> float:
    """Return the time that the grammar adds, as a share of a token's time without it."""
    added_s = sum(cost.constrained_s - cost.plain_s for cost in later)
    return added_s / sum(cost.decode_s + cost.plain_s for cost in later)


@tool
def main(arguments: Sequence[str] | None) -> int:
    """Return 0 if the bound holds for every grammar."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("--tokens", type=positive, default=64)
    parser.add_argument("--top-k", type=int, default=edge.Sampling.top_k)
    given = parser.parse_args(arguments)
    threads = edge.plan(given.model, ram="1TiB", ctx=512).shape.threads
    model = LlamaModel(given.model)
    context = LlamaContext(model, ContextShape(512, 512, threads))
    held = list[bool]()
    for name, constraint in CONSTRAINTS.items():
        sampling = edge.Sampling(
            top_k=given.top_k, grammar=constraint.grammar, json_schema=constraint.json_schema
        )
        first, *later = costs(model, context, sampling, given.tokens)
        if not later:
            continue
        found = share(later)
        logits_s = sum(cost.decode_s for cost in later) / len(later)
        held.append(
            verdict(
                f"{name}: first token {1e3 * first.constrained_s:.0f} ms, a token's logits"
                f" {1e3 * logits_s:.1f} ms; {found:.3f} of a token's time in {len(later)} tokens,"
                f" bound {BOUND}",
                found <= BOUND,
            )
        )
    context.close()
    model.close()
    return 0 if all(held) else 1


if __name__ == "__main__":
    sys.exit(main())
