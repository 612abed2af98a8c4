"""Does speculation pay, and does the gate see where? `auto` beside `off` and beside fixed lengths.

    python -m haversack.tools.bench.speculation [MODEL ...] [--prompts FILE ...] [--share X ...]
        [--tokens 128] [--rounds 3] [--per-set 4] [--csv FILE]

Each round continues every prompt with each setting, by turns, greedily; drafts begin with what the
prompt says, not with what earlier rounds said. The text must be the same each time. A FILE has a
JSON object in each line (also .gz): the text is in "turns" (the first one), "prompt" or "question",
and "category", if it is there, names the set. Without FILE: a few prompts of its own. --share is
the share of experts in slots; without it all are in memory. Without MODEL: the built-in model.

Bounds, medians of the rounds, for each set: `auto` reaches 0.97 of the tokens a second of `off`,
0.95 of the best fixed length, and 1.1 of `off` where a fixed length reaches 1.15.
"""

import argparse
import gzip
import json
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from haversack import edge
from haversack.devices.errors import PromptError
from haversack.edge.planner import streamed
from haversack.tools.command_line import give_table, positive, tool, verdict

AUTO, OFF = "auto", "off"
LENGTHS = (1, 2, 3, 5, 6)
SETTINGS = (OFF, AUTO, *(f"ngram:{length}" for length in LENGTHS))
LEAST_OF_OFF, LEAST_OF_BEST = 0.97, 0.95
GAIN, LEAST_GAIN = 1.15, 1.1
CTX_TOKENS = 2048
_LIST = "red apple, green pear, blue plum, white grape, black cherry, "
OWN_PROMPTS = {
    "copy": [f"Say it again: {_LIST * 3}red apple, green", _LIST * 4],
    "story": ["Once upon a time there was a fox. One day", "The old king said to his daughter:"],
}

Prompts = Mapping[str, Sequence[str]]


@dataclass(frozen=True)
class Run:
    """A setting's texts of a set of prompts: the tokens a second, and the share of drafted tokens
    that were right."""

    texts: list[str]
    tok_s: float
    rate: float


def read_prompts(path: Path, per_set: int) -> Prompts:
    """Return the first prompts of each set in a file. Raises PromptError, OSError."""
    found: dict[str, list[str]] = {}
    opener = gzip.open if path.suffix == ".gz" else open
    with opener(path, "rt", encoding="utf-8") as file:
        for line in file:
            record = json.loads(line)
            text = record.get("turns", [None])[0] or record.get("prompt") or record.get("question")
            if not isinstance(text, str):
                raise PromptError(f'{path}: a line has no "turns", "prompt" or "question"')
            found.setdefault(record.get("category", path.name.split(".")[0]), []).append(text)
    return {name: texts[:per_set] for name, texts in found.items()}


def run(model: edge.Model, setting: str, prompts: Sequence[str], num_tokens: int) -> Run:
    """Continue the prompts. The time to the first token is left out."""
    model.speculate(setting)
    before, texts, spent_s, tokens = model.stats(), list[str](), 0.0, 0
    for prompt in prompts:
        generation = model.generate(prompt, num_tokens, temperature=0)
        pieces = [next(generation, "")]
        begun, start = len(generation.tokens), time.perf_counter()
        pieces += generation
        spent_s += time.perf_counter() - start
        tokens += len(generation.tokens) - begun
        texts.append("".join(pieces))
    spent = model.stats().since(before)
    rate = spent.draft_accepted / spent.drafted if spent.drafted else 0.0
    return Run(texts, tokens / spent_s, rate)


def measured(
    model: edge.Model, prompts: Sequence[str], num_tokens: int, rounds: int
) -> dict[str, Run]:
    """Return the median run of each setting. A first round, which does not count, brings experts
    and shows the gate what passes cost. Raises RuntimeError for a text that differs."""
    found: dict[str, list[Run]] = {setting: [] for setting in SETTINGS}
    for number in range(rounds + 1):
        for setting in SETTINGS if number % 2 else SETTINGS[::-1]:
            found[setting].append(run(model, setting, prompts, num_tokens))
            if found[setting][-1].texts != found[SETTINGS[-1]][0].texts:
                raise RuntimeError(f"with {setting} the text is another one: a bug")
    return {
        setting: sorted(runs[1:], key=lambda each: each.tok_s)[(rounds - 1) // 2]
        for setting, runs in found.items()
    }


def row_of(name: str, runs: Mapping[str, Run]) -> dict[str, str]:
    """Return the row of a set of prompts: tokens a second beside those of `off`."""
    off = runs[OFF].tok_s
    ratios = {setting: f"{each.tok_s / off:.3f}" for setting, each in runs.items()}
    longest = runs[SETTINGS[-1]]
    return {"prompts": name, "off tok/s": f"{off:.1f}", "right": f"{longest.rate:.0%}", **ratios}


def holds(name: str, runs: Mapping[str, Run]) -> Iterator[bool]:
    """Print the bounds of a set of prompts; yield whether each holds."""
    off, auto = runs[OFF].tok_s, runs[AUTO].tok_s
    best = max(each.tok_s for setting, each in runs.items() if setting != AUTO)
    yield verdict(
        f"{name}: auto / off {auto / off:.3f} >= {LEAST_OF_OFF}", auto >= LEAST_OF_OFF * off
    )
    yield verdict(
        f"{name}: auto / best length {auto / best:.3f} >= {LEAST_OF_BEST}",
        auto >= LEAST_OF_BEST * best,
    )
    if best >= GAIN * off:
        yield verdict(
            f"{name}: auto / off {auto / off:.3f} >= {LEAST_GAIN}", auto >= LEAST_GAIN * off
        )


@tool
def main(arguments: Sequence[str] | None) -> int:
    """Return 0 if all bounds hold."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("models", type=Path, nargs="*", metavar="MODEL")
    parser.add_argument("--prompts", type=Path, action="append", default=[], metavar="FILE")
    parser.add_argument("--share", type=float, action="append", default=[])
    parser.add_argument("--tokens", type=positive, default=128)
    parser.add_argument("--rounds", type=positive, default=3)
    parser.add_argument("--per-set", type=positive, default=4)
    parser.add_argument("--csv", type=Path)
    given = parser.parse_args(arguments)
    sets = {k: v for path in given.prompts for k, v in read_prompts(path, given.per_set).items()}
    rows, held = list[dict[str, str]](), list[bool]()
    for path in given.models or [edge.builtin_model()]:
        for share in given.share or [None]:
            planned = edge.plan(path, ram="1TiB", ctx=CTX_TOKENS)
            planned = planned if share is None else streamed(planned, share)
            options = edge.LoadOptions(warm_start=False)
            with edge.load(planned, options=options) as model:
                for name, prompts in (sets or OWN_PROMPTS).items():
                    where = "in memory" if share is None else f"{share:.0%} in slots"
                    runs = measured(model, prompts, given.tokens, given.rounds)
                    rows.append(row_of(f"{path.name} {where}: {name}", runs))
                    held += holds(rows[-1]["prompts"], runs)
                print("seconds of a pass by its rows:", model.pass_times_s())
    give_table(rows, given.csv)
    return 0 if all(held) else 1


if __name__ == "__main__":
    sys.exit(main())
