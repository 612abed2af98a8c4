"""Does speculation pay, and does the gate see where? `auto` beside `off` and beside fixed lengths.

    python -m haversack.tools.bench.speculation [MODEL ...] [--prompts PATH ...] [--share X ...]
        [--drafter ngram|DRAFT.gguf ...] [--sets NAME ...] [--tokens 128] [--rounds 3]
        [--per-set 4] [--quick] [--csv FILE]

Each round continues every prompt with each setting, by turns, greedily; drafts begin with what the
prompt says, not with what earlier rounds said. The text must be the same each time. PATH is a file,
or a folder of files, with a JSON object in each line (.jsonl, also .gz): the text is in "turns"
(the first one), "prompt" or "question"; a model with a chat template reads it as a user's message.
A set is a file, or a "category" of it; --sets leaves out those whose name has none of the given
words. Without PATH: a few prompts of its own. A prompt that leaves no room for its tokens in the
context is left out. --share is the share of experts in slots; 1, and without it, all are in memory.
Without MODEL: the built-in model. Each prompt of a set keeps its place, so that it is read once. A
fast model needs many rounds. --quick takes one set a file, two prompts of different categories, 32
tokens and one round: a look at all sets in minutes.

Bounds, medians of the rounds, for each set: `auto` reaches 0.97 of the tokens a second of `off`,
0.95 of the best fixed length (0, which is `off`, 1, 2, 3, 5 and 6, the most that a pass of 7 rows
holds), and 1.1 of `off` where a fixed length reaches 1.15.

On a machine whose speed changes by 10 % from second to second, that would judge the machine, so
`off` runs twice: `off again` says how far chance goes. With all experts in memory a pass takes as
long as any other of as many rows, so there the bounds are of tokens a second that are free of
chance: each setting's passes are counted by their rows, and take what such passes took in the mean
of all settings. What a setting took beside its passes is added. The table has these ratios, those
of the clock (`auto clock`, `off again`), the time of passes of n rows in passes of one, and of the
drafts of each length the share that was right.
"""

import gzip
import json
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain, product, zip_longest
from pathlib import Path
from statistics import geometric_mean

from haversack import edge
from haversack.devices.errors import PromptError
from haversack.devices.llama import MOST_ROWS
from haversack.edge.planner import streamed, with_drafts
from haversack.edge.speculate import PassCount
from haversack.tools.command_line import give_table, prompts_parser, tool, verdict

AUTO, OFF, AGAIN = "auto", "off", "off again"
LENGTHS = (1, 2, 3, 5, 6)
NGRAM = "ngram"
SETTINGS = (OFF, AUTO, *map(str, LENGTHS))
TIMED = (*SETTINGS, AGAIN)
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
    """A setting's texts of a set of prompts: the tokens a second, the share of drafted tokens that
    were right, and its passes by their rows."""

    texts: list[str]
    tok_s: float
    rate: float
    tokens: int = 0
    passes: Sequence[PassCount] = ()

    @property
    def beside_s(self) -> float:
        """Return the seconds that were spent beside passes."""
        return self.tokens / self.tok_s - sum(each.taken_s for each in self.passes)

    def at(self, times_s: Sequence[float]) -> "Run":
        """Return the run as if each pass had taken what passes of as many rows usually do."""
        passes_s = sum(each.number * s for each, s in zip(self.passes, times_s, strict=True))
        return replace(self, tok_s=self.tokens / (passes_s + max(0.0, self.beside_s)))


def read_prompts(path: Path, per_set: int, is_quick: bool = False) -> Prompts:
    """Return the first prompts of each set in a file; of all in one, by turns, if it `is_quick`.
    Raises PromptError, OSError."""
    found, stem = dict[str, list[str]](), path.name.split(".")[0]
    opener = gzip.open if path.suffix == ".gz" else open
    with opener(path, "rt", encoding="utf-8") as file:
        for line in file:
            record = json.loads(line)
            text = record.get("turns", [None])[0] or record.get("prompt") or record.get("question")
            if not isinstance(text, str):
                raise PromptError(f'{path}: a line has no "turns", "prompt" or "question"')
            name = f"{stem} {record['category']}" if "category" in record else stem
            found.setdefault(name, []).append(text)
    if is_quick:
        turns = chain.from_iterable(zip_longest(*found.values()))
        found = {stem: [text for text in turns if text is not None]}
    return {name: texts[:per_set] for name, texts in found.items()}


def read_sets(
    paths: Sequence[Path], per_set: int, words: Sequence[str], is_quick: bool = False
) -> Prompts:
    """Return the sets of files and folders whose names have one of the words, if any are given.
    Raises PromptError, OSError."""
    files = list[Path]()
    for path in paths:
        files += sorted(path.glob("*.jsonl*")) if path.is_dir() else [path]
    read = [read_prompts(path, per_set, is_quick) for path in files]
    sets = {name: texts for each in read for name, texts in each.items()}
    found = {k: v for k, v in sets.items() if not words or any(word in k for word in words)}
    if paths and not found:
        raise PromptError(f"no set of prompts is called so: there are {', '.join(sets) or 'none'}")
    return found or OWN_PROMPTS


def speculate_as(drafter: str, setting: str) -> str:
    """Return what `--speculate` is for a setting of a drafter, "ngram" or the path of a model."""
    if setting in (OFF, AGAIN):
        return OFF
    if setting == AUTO:
        return AUTO if drafter == NGRAM else drafter
    return f"{drafter}:{setting}"


def run(model: edge.Model, speculate: str, prompts: Sequence[str], num_tokens: int) -> Run:
    """Continue the prompts, which were read before: a pass may give many tokens at once, so the
    first one is timed too."""
    model.speculate(speculate)
    before, passes = model.stats(), model.pass_counts()
    texts, spent_s, tokens = list[str](), 0.0, 0
    for prompt in prompts:
        start = time.perf_counter()
        generation = model.generate(prompt, num_tokens, temperature=0)
        texts.append("".join(generation))
        spent_s += time.perf_counter() - start
        tokens += len(generation.tokens)
    spent = model.stats().since(before)
    rate = spent.draft_accepted / spent.drafted if spent.drafted else 0.0
    counted = [now - then for now, then in zip(model.pass_counts(), passes, strict=True)]
    return Run(texts, tokens / spent_s, rate, tokens, counted)


def measured(
    model: edge.Model, drafter: str, prompts: Sequence[str], num_tokens: int, rounds: int
) -> dict[str, list[Run]]:
    """Return the runs of each setting. A first round, which does not count, brings experts and
    shows the gate what passes cost. Raises RuntimeError for a text that differs."""
    found: dict[str, list[Run]] = {setting: [] for setting in TIMED}
    for number in range(rounds + 1):
        for setting in TIMED if number % 2 else TIMED[::-1]:
            found[setting].append(run(model, speculate_as(drafter, setting), prompts, num_tokens))
            if found[setting][-1].texts != found[TIMED[-1]][0].texts:
                raise RuntimeError(f"with {setting} the text is another one: a bug")
    return {setting: runs[1:] for setting, runs in found.items()}


def medians(runs: Mapping[str, Sequence[Run]]) -> dict[str, Run]:
    """Return the median run of each setting."""
    return {
        setting: sorted(each, key=lambda run: run.tok_s)[(len(each) - 1) // 2]
        for setting, each in runs.items()
    }


def mean_times_s(runs: Mapping[str, Sequence[Run]]) -> list[float]:
    """Return the mean time of passes of all settings by their rows; 0 where there were none."""
    passes = [run.passes for each in runs.values() for run in each]
    return [
        sum(each.taken_s for each in alike) / max(1, sum(each.number for each in alike))
        for alike in zip(*passes, strict=True)
    ]


def steady(runs: Mapping[str, Sequence[Run]], times_s: Sequence[float]) -> dict[str, list[Run]]:
    """Return the runs as if each pass had taken these times by its rows."""
    return {setting: [run.at(times_s) for run in each] for setting, each in runs.items()}


def best_tok_s(runs: Mapping[str, Run]) -> float:
    """Return the tokens a second of the best fixed length."""
    return max(runs[setting].tok_s for setting in (OFF, *map(str, LENGTHS)))


def row_of(
    name: str, clock: Mapping[str, Run], runs: Mapping[str, Run], times_s: Sequence[float]
) -> dict[str, str]:
    """Return the row of a set of prompts: tokens a second beside those of `off` and of the best
    length, by counted passes and by the clock, times of passes, and how many drafted tokens were
    right."""
    off, drafted = runs[OFF].tok_s, (AUTO, *map(str, LENGTHS))
    row = {"prompts": name, "off tok/s": f"{clock[OFF].tok_s:.1f}"}
    row |= {setting: f"{runs[setting].tok_s / off:.3f}" for setting in drafted}
    row["auto/best"] = f"{runs[AUTO].tok_s / best_tok_s(runs):.3f}"
    row["auto clock"] = f"{clock[AUTO].tok_s / clock[OFF].tok_s:.3f}"
    row[AGAIN] = f"{clock[AGAIN].tok_s / clock[OFF].tok_s:.3f}"
    for rows in range(2, MOST_ROWS + 1):
        row[f"T({rows})"] = f"{times_s[rows] / times_s[1]:.2f}" if times_s[rows] else ""
    return row | {f"right {setting}": f"{runs[setting].rate:.0%}" for setting in drafted}


def holds(name: str, runs: Mapping[str, Run]) -> Iterator[bool]:
    """Print the bounds of a set of prompts; yield whether each holds."""
    off, auto, best = runs[OFF].tok_s, runs[AUTO].tok_s, best_tok_s(runs)
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


def asked(model: edge.Model, prompts: Sequence[str]) -> list[str]:
    """Return the prompts as a user's message, if the model has a chat template."""
    try:
        template = model.chat_template()
    except PromptError:
        return list(prompts)
    return [template.render([{"role": "user", "content": prompt}]) for prompt in prompts]


def fitting(model: edge.Model, prompts: Sequence[str], num_tokens: int) -> list[str]:
    """Return the prompts that leave room for so many tokens."""
    most = model.plan.shape.ctx_tokens - num_tokens
    return [prompt for prompt in prompts if len(model.tokenize(prompt)) <= most]


def summary(rows: Sequence[Mapping[str, str]]) -> str:
    """Return how many cells there are, and which gain by a fixed length and by the gate."""
    gains = [row for row in rows if max(float(row[each]) for each in map(str, LENGTHS)) >= GAIN]
    named = "".join(f"\n  {row['prompts']}: auto {row[AUTO]}" for row in gains)
    clock, again = (
        f"{geometric_mean(each):.3f} ({min(each):.2f} to {max(each):.2f})"
        for each in ([float(row[column]) for row in rows] for column in ("auto clock", AGAIN))
    )
    return (
        f"{len(rows)} cells; by the clock auto is {clock} of off, and off again {again}; a fixed"
        f" length reaches {GAIN} of off in {len(gains)}{named}"
    )


def opened(path: Path, share: float | None, drafter: str, num_texts: int = 1) -> edge.Model:
    """Return the model with `share` of its experts in slots, and the drafter beside it. It holds so
    many texts."""
    planned = edge.plan(path, ram="1TiB", ctx=CTX_TOKENS, sequences=num_texts)
    planned = with_drafts(planned, None if drafter == NGRAM else Path(drafter))
    planned = planned if share is None else streamed(planned, share)
    asked = speculate_as(drafter, AUTO)
    return edge.load(planned, options=edge.LoadOptions(warm_start=False, speculate=asked))


@tool
def main(arguments: Sequence[str] | None) -> int:
    """Return 0 if all bounds hold."""
    parser = prompts_parser(__doc__, {"tokens": 128, "rounds": 3, "per-set": 4})
    parser.add_argument("models", type=Path, nargs="*", metavar="MODEL")
    parser.add_argument("--drafter", action="append", default=[], metavar="DRAFTER")
    parser.add_argument("--share", type=float, action="append", default=[])
    parser.add_argument("--quick", action="store_true")
    given = parser.parse_args(arguments)
    if given.quick:
        given.tokens, given.rounds, given.per_set = 32, 1, min(2, given.per_set)
    sets = read_sets(given.prompts, given.per_set, given.sets, given.quick)
    shares = [None if share >= 1 else share for share in given.share] or [None]
    rows, held = list[dict[str, str]](), list[bool]()
    for path in given.models or [edge.builtin_model()]:
        for share, drafter in product(shares, given.drafter or [NGRAM]):
            with opened(path, share, drafter, given.per_set) as model:
                for name, prompts in sets.items():
                    where = "in memory" if share is None else f"{share:.0%} in slots"
                    title = f"{path.name} {where}, {Path(drafter).name}: {name}"
                    texts = asked(model, prompts) if given.prompts else prompts
                    short = fitting(model, texts, given.tokens)
                    runs = measured(model, drafter, short, given.tokens, given.rounds)
                    if not runs[OFF][0].tok_s:
                        print(f"{title}: no text is as short, or the model ends each at once")
                        continue
                    clock, times_s = medians(runs), mean_times_s(runs)
                    judged = clock if share is not None else medians(steady(runs, times_s))
                    rows.append(row_of(title, clock, judged, times_s))
                    held += holds(title, judged)
    give_table(rows, given.csv)
    print(summary(rows))
    return 0 if all(held) else 1


if __name__ == "__main__":
    sys.exit(main())
