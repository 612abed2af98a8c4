"""How good is a trained model? Losses beside baselines, routing beside real models, samples.

    python -m haversack.tools.training.evaluate CORPUS model.gguf FOLDER --beside dense.gguf

Losses and routing are computed by torch from the weights in the GGUF; the samples come from the
engine. FOLDER gets `evaluation.json`, `evaluation.md` and `samples.md`.
"""

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from haversack import edge
from haversack.cache.precision import scores
from haversack.edge.replay import Trace
from haversack.tools.command_line import tool
from haversack.tools.routing.measures import (
    CACHE_SHARES,
    expert_load,
    hit_rates,
    load_entropy,
    prediction_recall,
    recorded_traces,
    step_reuse,
)
from haversack.tools.training.batches import token_row, windows_of
from haversack.tools.training.corpus import Source, chat_sources, held_out_sources, story_sources
from haversack.tools.training.decoder import Decoder, Routing
from haversack.tools.training.export import load_gguf
from haversack.tools.training.perplexity import CountedPairs, Loss, mean_loss, model_nats

SAMPLES = Path(__file__).parent / "samples.json"
ALL_TRAINED = "all but the new domains"

_TOKENS_A_DOMAIN = 20_000
_TRACE_TOKENS = 512  # of a trace: a story as long as the context
_DEPTHS = (1, 2, 3)
_EXTRAS = (0, 2, 4)
_SCORE_QUANTILES = (0.1, 0.25, 0.5, 0.75, 0.9)
_DEAD_SHARE = 0.1  # of the fair load; an expert below counts as dead

Report = dict[str, Any]


class Evaluation:
    """A model, its held-out text, and what its routers did on it."""

    def __init__(self, path: Path, corpus: Path) -> None:
        self.path = path
        self.model, self.vocabulary = load_gguf(path)
        self._corpus = corpus
        self.routing = Routing([], [], [])

    # ------------------------------------------------------------- perplexity
    def losses(self) -> dict[str, Loss]:
        """Return the model's loss on every held-out domain; fill `routing` on those trained on."""
        found = {}
        for source in held_out_sources(self._corpus):
            windows, num_bytes = self._windows(source)
            routing = None if _is_new(source.domain) else self.routing
            nats = model_nats(self.model, windows, routing)
            found[source.domain] = Loss(nats, windows[:, 1:].size, num_bytes)
        return found

    def baselines(self) -> dict[str, dict[str, float]]:
        """Return the losses of counted tokens and pairs, in nats a token, by domain and name."""
        sources = story_sources(self._corpus) + chat_sources(self._corpus, seed=1)
        counted = CountedPairs(token_row(sources, self.vocabulary, 0), len(self.vocabulary))
        found = {}
        for source in held_out_sources(self._corpus):
            windows, _ = self._windows(source)
            found[source.domain] = {
                "unigram": counted.unigram_nats(windows),
                "bigram": counted.bigram_nats(windows),
            }
        return found

    def _windows(self, source: Source) -> tuple[npt.NDArray[np.int64], int]:
        """Return held-out windows and the bytes of text that their predicted tokens stand for."""
        ids = token_row([source], self.vocabulary, 0)
        windows = windows_of(ids, self.model.shape.context_tokens, _TOKENS_A_DOMAIN)
        num_bytes = sum(len(self.vocabulary.decode(row).encode()) for row in windows[:, 1:])
        return windows, num_bytes

    # ---------------------------------------------------------------- routing
    def loads(self) -> list[Report]:
        """Return a row for each layer: how even the load on held-out text is, and its least and its
        most loaded expert."""
        rows = []
        for layer, choice in enumerate(self._choices()):
            load = expert_load(choice, self.model.shape.num_experts)
            rows.append(
                {
                    "layer": layer,
                    "entropy": load_entropy(load),
                    "least": float(load.min()),
                    "most": float(load.max()),
                    "dead": int((load < _DEAD_SHARE).sum()),
                }
            )
        return rows

    def reuse(self) -> list[Report]:
        """Return a row for each model, this one first: reuse and hit rates on text told token by
        token."""
        return [_reuse_row(trace) for trace in [self._trace(), *recorded_traces()]]

    def _trace(self) -> Trace:
        routing = Routing([], [], [])
        source = held_out_sources(self._corpus)[0]
        ids = token_row([source], self.vocabulary, 0)
        model_nats(self.model, windows_of(ids, _TRACE_TOKENS, _TRACE_TOKENS), routing)
        layers = [chosen.numpy() for chosen in routing.chosen]
        return Trace(f"{self.path.stem} (this model)", self.model.shape.num_experts, layers)

    def recalls(self) -> list[Report]:
        """Return a row for each layer and depth: how many experts of that later layer are
        predicted."""
        inputs = self._gathered(self.routing.inputs)
        choices = self._choices()
        rows = []
        for layer in range(len(choices)):
            for depth in _DEPTHS:
                if layer + depth < len(choices):
                    router = _router(self.model, layer + depth)
                    predicted = {
                        f"plus_{extra}": prediction_recall(
                            inputs[layer], router, choices[layer + depth], extra
                        )
                        for extra in _EXTRAS
                    }
                    rows.append({"layer": layer, "depth": depth, **predicted})
        return rows

    def scores(self) -> list[Report]:
        """Return a row for each rank: the mean weight of experts of that rank, and quantiles of
        their score."""
        weights = np.concatenate([_top_weights(p, self._used) for p in self._probabilities()])
        found = scores(weights)
        return [
            {
                "rank": rank,
                "mean_weight": float(weights[:, rank].mean()),
                **{
                    f"score_q{round(100 * q)}": float(np.quantile(found[:, rank], q))
                    for q in _SCORE_QUANTILES
                },
            }
            for rank in range(self._used)
        ]

    @property
    def _used(self) -> int:
        return self.model.shape.num_experts_per_tok

    def _choices(self) -> list[npt.NDArray[np.int64]]:
        return self._gathered(self.routing.chosen)

    def _probabilities(self) -> list[npt.NDArray[np.float32]]:
        return self._gathered(self.routing.probabilities)

    def _gathered(self, passes: list[Any]) -> list[Any]:
        """Return what every pass appended layer by layer, as one array for each layer."""
        num_layers = self.model.shape.num_hidden_layers
        return [
            np.concatenate([p.numpy() for p in passes[i::num_layers]]) for i in range(num_layers)
        ]


def _is_new(domain: str) -> bool:
    return domain.endswith("(new domain)")


def _router(model: Decoder, layer: int) -> npt.NDArray[np.float32]:
    router = model.get_parameter(f"blk.{layer}.ffn_gate_inp")
    return router.detach().numpy()


def _top_weights(probabilities: npt.NDArray[np.float32], used: int) -> npt.NDArray[np.float32]:
    best = -np.sort(-probabilities, axis=1)[:, :used]
    weights: npt.NDArray[np.float32] = best / best.sum(axis=1, keepdims=True)
    return weights


def _reuse_row(trace: Trace) -> Report:
    row: Report = {
        "model": trace.name,
        "experts": trace.num_experts,
        "per_token": trace.layers[0].shape[1],
        "reuse": float(np.mean([step_reuse(choice) for choice in trace.layers])),
    }
    for share in CACHE_SHARES:
        row[f"lru_{100 * share:g}%"], row[f"belady_{100 * share:g}%"] = hit_rates(trace, share)
    return row


# -------------------------------------------------------------------- report
def evaluated(path: Path, corpus: Path, beside: Sequence[Path] = ()) -> Report:
    """Return all measurements of the model at `path`, and the losses of those `beside` it: its
    dense twin, or itself in other formats. They must have its vocabulary."""
    evaluation = Evaluation(path, corpus)
    losses = {path.stem: evaluation.losses()}
    losses |= {other.stem: Evaluation(other, corpus).losses() for other in beside}
    baselines = evaluation.baselines()
    report: Report = {"model": path.name, "losses": _loss_rows(losses, baselines)}
    if evaluation.model.shape.num_experts:
        report |= {
            "load": evaluation.loads(),
            "reuse": evaluation.reuse(),
            "recall": evaluation.recalls(),
            "scores": evaluation.scores(),
        }
    return report


def _loss_rows(
    losses: dict[str, dict[str, Loss]], baselines: dict[str, dict[str, float]]
) -> list[Report]:
    """Return perplexities and bits a byte: a row for each domain, and one over all that were
    trained on."""
    first = next(iter(losses.values()))
    rows = []
    for domain, loss in first.items():
        row: Report = {"domain": domain, "tokens": loss.num_tokens}
        for name, of_domain in losses.items():
            row[f"{name} perplexity"] = of_domain[domain].perplexity
            row[f"{name} bits/byte"] = of_domain[domain].bits_per_byte
        for name, nats in baselines[domain].items():
            row[f"{name} perplexity"] = float(np.exp(nats))
        rows.append(row)
    trained = [domain for domain in first if not _is_new(domain)]
    total: Report = {"domain": ALL_TRAINED, "tokens": sum(first[d].num_tokens for d in trained)}
    for name, of_domain in losses.items():
        together = mean_loss([of_domain[domain] for domain in trained])
        total[f"{name} perplexity"] = together.perplexity
        total[f"{name} bits/byte"] = together.bits_per_byte
    for name in ("unigram", "bigram"):
        nats = sum(baselines[d][name] * first[d].num_tokens for d in trained) / total["tokens"]
        total[f"{name} perplexity"] = float(np.exp(nats))
    return [*rows, total]


def markdown(report: Report) -> str:
    """Return the report as tables."""
    titles = {
        "losses": "Held-out losses",
        "load": "Load of the experts, 1 is fair",
        "reuse": "Reuse from token to token, and hit rates of a cache of a share of each layer",
        "recall": "Experts of a later layer predicted from this layer's router input",
        "scores": "Weights and scores by rank (precision rule)",
    }
    parts = [f"# Evaluation of {report['model']}"]
    for key, title in titles.items():
        if key in report:
            parts += [f"## {title}", "\n".join(_table(report[key]))]
    return "\n\n".join(parts) + "\n"


def _table(rows: list[Report]) -> Iterator[str]:
    yield "| " + " | ".join(rows[0]) + " |"
    yield "|" + "---|" * len(rows[0])
    for row in rows:
        yield "| " + " | ".join(_cell(value) for value in row.values()) + " |"


def _cell(value: Any) -> str:
    return f"{value:.3f}" if isinstance(value, float) else str(value)


def samples(path: Path) -> str:
    """Return the engine's answers to the prompts that were fixed before training, one attempt
    each."""
    chosen = json.loads(SAMPLES.read_text(encoding="utf-8"))
    settings = {key: chosen[key] for key in ("seed", "temperature", "top_p", "max_tokens")}
    parts = [f"Seed {settings['seed']}, temperature {settings['temperature']}, one attempt each."]
    with edge.load(path, ram="1TiB", threads=1) as model:
        for prompt in chosen["prompts"]:
            answer = model.chat([{"role": "user", "content": prompt}], **settings).text
            quoted = "\n".join(f"> {line}".rstrip() for line in answer.strip().splitlines())
            parts.append(f"**{prompt}**\n\n{quoted}")
    return "\n\n".join(parts) + "\n"


# -------------------------------------------------------------------- program
@tool
def main(arguments: Sequence[str] | None) -> int:
    """Evaluate the model that the command line names; the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("corpus", type=Path, help="the folder of the corpus files")
    parser.add_argument("model", type=Path, help="a GGUF that tools.training.train wrote")
    parser.add_argument("folder", type=Path, help="where the report is written")
    parser.add_argument("--beside", type=Path, nargs="*", default=[], help="GGUFs to compare with")
    given = parser.parse_args(arguments)
    given.folder.mkdir(parents=True, exist_ok=True)
    report = evaluated(given.model, given.corpus, given.beside)
    tables = markdown(report)
    (given.folder / "evaluation.json").write_text(json.dumps(report, indent=1) + "\n")
    (given.folder / "evaluation.md").write_text(tables)
    (given.folder / "samples.md").write_text(samples(given.model))
    print(tables)
    return 0


if __name__ == "__main__":
    sys.exit(main())
