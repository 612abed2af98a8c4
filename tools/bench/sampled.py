"""How often is a drafted token right where the text's tokens are drawn at random?

    python -m haversack.tools.bench.sampled MODEL DRAFTER [--prompts PATH ...] [--tokens 64]
        [--per-set 4] [--temperature X ...] [--csv FILE]

MODEL and DRAFTER have the same vocabulary. MODEL goes on from each prompt with the temperature and
the other usual samplers; at each place the next token is drafted in two ways: the drafter's
likeliest one, as it is for a text that was asked for with a seed, and one that is drawn and
offered, as it is else. Bound: offers are right more often.
"""

import sys
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from statistics import mean

from haversack import edge
from haversack.devices.errors import ModelFileError
from haversack.devices.llama import ContextShape, LlamaContext
from haversack.devices.llama_model import LlamaModel
from haversack.devices.sampler import SamplerChain
from haversack.devices.vocabulary import Vocabulary
from haversack.edge.generation import sampler_chain
from haversack.tools.bench.speculation import read_sets
from haversack.tools.command_line import give_table, prompts_parser, tool, verdict

Rates = tuple[bool, bool]  # whether the likeliest token was right, and the offered one taken

_BATCH_TOKENS, _CTX_TOKENS, _THREADS = 256, 512, 2


def chain_of(vocabulary: Vocabulary, temperature: float, seed: int) -> SamplerChain:
    """Return the usual samplers."""
    usual = edge.Sampling(temperature=temperature)
    return sampler_chain(usual, _CTX_TOKENS, vocabulary, seed)


def continued(
    contexts: Sequence[LlamaContext], chain: SamplerChain, offering: SamplerChain
) -> Iterator[Rates]:
    """Yield the rates at each place behind what both contexts hold, of which the first is the
    model's."""
    while True:
        by_model, by_drafter = (each.logits() for each in contexts)
        offer = offering.offer(by_drafter)
        token = chain.sample(by_model)
        yield token == int(by_drafter.argmax()), offering.sample(by_model, offer) == offer.token
        for context in contexts:
            context.decode([token])


def mean_rates(
    models: Sequence[LlamaModel], prompts: Sequence[str], num_tokens: int, temperature: float
) -> tuple[float, float]:
    """Return the mean of both rates over all places."""
    shape = ContextShape(_CTX_TOKENS, _BATCH_TOKENS, _THREADS)
    contexts = [LlamaContext(model, shape) for model in models]
    found = list[Rates]()
    for seed, prompt in enumerate(prompts):
        vocabulary = models[0].vocabulary
        chain, offering = (
            chain_of(vocabulary, temperature, seed + n * len(prompts)) for n in (0, 1)
        )
        for context in contexts:
            context.forget(0)
            context.decode(vocabulary.tokenize(prompt, add_special=True)[:_BATCH_TOKENS])
        found += islice(continued(contexts, chain, offering), num_tokens)
        chain.close()
        offering.close()
    for context in contexts:
        context.close()
    return mean(likely for likely, _ in found), mean(offered for _, offered in found)


@tool
def main(arguments: Sequence[str] | None) -> int:
    """Return 0 if offers are right more often."""
    parser = prompts_parser(__doc__, {"tokens": 64, "per-set": 4})
    parser.add_argument("model", type=Path)
    parser.add_argument("drafter", type=Path)
    parser.add_argument("--temperature", type=float, action="append", default=[])
    given = parser.parse_args(arguments)
    sets = read_sets(given.prompts, given.per_set, given.sets)
    prompts = [text for each in sets.values() for text in each]
    edge.plan(given.model)  # refuses what is no causal text model
    models = [LlamaModel(given.model), LlamaModel(given.drafter)]
    if models[0].vocabulary.num_tokens != models[1].vocabulary.num_tokens:
        raise ModelFileError("the vocabularies differ: give a drafter with that of the model")
    rows, held = list[dict[str, str]](), list[bool]()
    for temperature in given.temperature or [0.3, 0.8, 1.0]:
        likely, offered = mean_rates(models, prompts, given.tokens, temperature)
        row = {"likeliest": f"{likely:.1%}", "drawn and offered": f"{offered:.1%}"}
        rows.append({"temperature": f"{temperature:g}", **row})
        held.append(verdict(f"temperature {temperature:g}: {row}", offered > likely))
    for model in models:
        model.close()
    give_table(rows, given.csv)
    return 0 if all(held) else 1


if __name__ == "__main__":
    sys.exit(main())
