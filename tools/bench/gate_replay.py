"""What would the gate do on other machines? Texts of a model, replayed with the times of passes
that were published for them. Every speed here is SIMULATED; what is drafted and what is right is
real.

    python -m haversack.tools.bench.gate_replay [MODEL] [--prompts PATH ...] [--sets NAME ...]
        [--tokens 256] [--per-set 8] [--rounds 4] [--noise 0.1] [--share 0.25] [--csv FILE]
        [--times 1,1.6,2,2.5,3,3.4,3.8 [--read 0.1]]

MODEL (by default the built-in one) continues the prompts greedily, once, with `--share` of its
experts in slots. Then the texts are walked through with the program's own drafts and gate, as often
as there are machines and settings: `auto`, and 0, 1, 2, 3, 5 and 6 drafted tokens always. A pass of
n rows takes what the machine's curve says, with some noise, and the reads of its experts: what its
tokens read when they were computed one by one, and for a wrong row what one read on average. A set
is walked through `--rounds` times, as `haversack.tools.bench.speculation` does; the first round,
which shows the gate the machine, does not count. --times are those of one more machine, as
`haversack.tools.bench.speculation` prints them, and --read the time of an expert's read. Bounds, on
each machine and set: `auto` reaches 0.97 of `off` and 0.95 of the best length.
"""

import argparse
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from statistics import mean

from haversack import edge
from haversack.devices.llama import MOST_ROWS
from haversack.edge.call import Call
from haversack.edge.speculate import Speculation, asked_for, speculation_of
from haversack.tools.bench.speculation import (
    AUTO,
    CTX_TOKENS,
    LEAST_OF_BEST,
    LEAST_OF_OFF,
    NGRAM,
    OFF,
    SETTINGS,
    opened,
    read_sets,
    speculate_as,
)
from haversack.tools.command_line import give_table, prompts_parser, tool, verdict

CHANGED_S = 0.05  # that a pass takes longer whose number of rows is another one


@dataclass(frozen=True)
class Machine:
    """The time of passes by their rows in passes of one, and of reading an expert."""

    name: str
    curve: Sequence[float]
    read_s: float = 0.0

    def pass_s(self, num_rows: int, num_reads: float) -> float:
        """Return the time of a pass."""
        return self.curve[num_rows - 1] + num_reads * self.read_s


def times_of(text: str) -> list[float]:
    """Return the times of passes of 1 to 7 rows in a list with commas. Raises argparse's error."""
    try:
        found = [float(each) for each in text.split(",")]
    except ValueError:
        found = []
    if len(found) != MOST_ROWS or min(found) <= 0:
        raise argparse.ArgumentTypeError(
            f"{text!r} are no times: give {MOST_ROWS}, as in 1,1.6,2,..."
        )
    return [each / found[0] for each in found]


def straight(row_cost: float) -> list[float]:
    """Return the times of passes of which each row more costs the same."""
    return [1 + row_cost * number for number in range(MOST_ROWS)]


MACHINES = (
    Machine("this one's two cores, in memory", (1, 1.97, 2.42, 3.09, 3.8, 4.53, 5.13)),
    Machine("the same, a drive that reads 2 GB/s", (1, 1.97, 2.42, 3.09, 3.8, 4.53, 5.13), 0.13),
    Machine("a slow drive", (1, 1.97, 2.42, 3.09, 3.8, 4.53, 5.13), 1.0),
    Machine("MI50 GPU, Gemma-4-26B-A4B", straight(0.22)),
    Machine("CPU of many cores, Qwen3-235B", (1, 1.30, 1.41, 1.45, 1.55, 1.65, 1.75)),
    Machine("laptop, llama.cpp, Qwen3.6-35B", straight(0.55)),
    Machine("8 cores, colibri, Qwen3.8-Flash", straight(0.65)),
    Machine("phone, Qwen3.6-35B, 73% of experts found", straight(0.79)),
    Machine("rows that share reads, 25% in slots", (1, 1.6, 2.0, 2.5, 3.0, 3.4, 3.8), 0.1),
    Machine("M3 Ultra, GLM-5.2", straight(1.33)),
    Machine("CUDA, GLM-4.5-Air: the second row is dear", (1, 3.05, 3.1, 3.2, 3.3, 3.4, 3.5)),
)


@dataclass(frozen=True)
class Text:
    """A prompt and its continuation. `reads` has the experts that were read to compute each token
    of the latter but the last, which is not computed."""

    tokens: Sequence[int]
    num_given: int
    reads: Sequence[float]


class ReplayedCall(Call):
    """A text that is computed up to `tokens`, the last of them not yet."""

    def __init__(self, text: Text) -> None:
        super().__init__(text.tokens[: text.num_given + 1], text.num_given)
        self._text = text

    @property
    def left(self) -> Sequence[int]:
        """The tokens that are to come."""
        return self._text.tokens[len(self.tokens) :]

    @property
    def most_drafted(self) -> int:
        return len(self.left) - 1

    def go_on(self, num_tokens: int) -> float:
        """Have it compute so many tokens. Return how many experts they read."""
        done = len(self.tokens) - self._text.num_given - 1
        self.tokens += self.left[:num_tokens]
        self.decoded_tokens += num_tokens
        return sum(self._text.reads[done : done + num_tokens])


class Replay:
    """Computes texts on a machine that is only thought of."""

    def __init__(self, machine: Machine, setting: str, wrong_reads: float, noise: float) -> None:
        self._asked = asked_for(speculate_as(NGRAM, setting))
        self.speculation: Speculation = speculation_of(self._asked, True, CTX_TOKENS)
        self._machine, self._wrong_reads, self._noise = machine, wrong_reads, noise
        self._random, self._latest_rows = Random(1), 1

    def round_s(self, texts: Sequence[Text]) -> float:
        """Return the time of the texts, one after the other, of which nothing is known before."""
        self.speculation.begin_anew(self._asked)
        return sum(map(self.spent_s, texts))

    def spent_s(self, text: Text) -> float:
        """Return the time of all passes of a text."""
        call, spent_s = ReplayedCall(text), 0.0
        while call.left:
            found = self.speculation.drafts([call], MOST_ROWS)
            most_ahead = self.speculation.most_ahead(call)
            if found or most_ahead == 1:
                spent_s += self._pass_s(call, found[0] if found else ())
                continue
            is_watched = self.speculation.watch(call) is not None  # then each pass has a look here
            num_passes = 1 if is_watched else min(most_ahead, len(call.left))
            times_s = [self._time_s(1, call.go_on(1)) for _ in range(num_passes)]
            self.speculation.note_plain(num_passes, sum(times_s), times_s[0])
            spent_s += sum(times_s)
        call.close()
        self.speculation.note_unusual()
        return spent_s

    def _pass_s(self, call: ReplayedCall, drafted: Sequence[int]) -> float:
        pairs = enumerate(zip(drafted, call.left, strict=False))
        right = next((idx for idx, (one, other) in pairs if one != other), len(drafted))
        num_wrong = len(drafted) - right
        reads = call.go_on(1 + right) + num_wrong * self._wrong_reads
        pass_s = self._time_s(1 + len(drafted), reads)
        self.speculation.note(1, len(drafted), right, pass_s)
        return pass_s

    def _time_s(self, num_rows: int, num_reads: float) -> float:
        exact_s = self._machine.pass_s(num_rows, num_reads)
        exact_s += CHANGED_S * (num_rows != self._latest_rows)
        self._latest_rows = num_rows
        return exact_s * self._random.uniform(1 - self._noise, 1 + self._noise)


def recorded(
    model: edge.Model, prompts: Sequence[str], num_tokens: int
) -> tuple[list[Text], float]:
    """Return the texts, and how many experts a wrong row reads."""
    texts = list(_computed(model, prompts, num_tokens))
    model.speculate(f"{NGRAM}:{MOST_ROWS - 1}")
    before = model.stats()
    for text in texts:
        assert model.generate(text.tokens[: text.num_given], num_tokens, temperature=0).text
    spent = model.stats().since(before)
    more = spent.misses - sum(sum(text.reads) for text in texts)
    wrong = spent.drafted - spent.draft_accepted
    return texts, max(0.0, more / wrong) if wrong else 0.0


def _computed(model: edge.Model, prompts: Sequence[str], num_tokens: int) -> Iterator[Text]:
    model.speculate(OFF)
    for prompt in prompts:
        given, reads = model.tokenize(prompt), list[float]()
        # With probabilities the tokens are computed one by one.
        generation = model.generate(given, num_tokens, temperature=0, logprobs=0)
        before = model.stats().misses
        for _ in generation:
            after = model.stats().misses
            num_new = len(generation.tokens) - len(reads)
            reads += [(after - before) / max(1, num_new)] * num_new
            before = after
        tokens = generation.tokens
        reads += [0.0] * (len(tokens) - len(reads))
        yield Text([*given, *tokens], len(given), reads[1:] or [0.0])  # of the pass behind each


def replayed(
    machine: Machine, texts: Sequence[Text], wrong_reads: float, options: argparse.Namespace
) -> dict[str, float]:
    """Return the tokens a second of each setting."""
    found = dict[str, float]()
    num_tokens = sum(len(text.tokens) - text.num_given for text in texts)
    for setting in SETTINGS:
        replay = Replay(machine, setting, wrong_reads, options.noise)
        rounds_s = [replay.round_s(texts) for _ in range(options.rounds)]
        found[setting] = num_tokens / mean(rounds_s[1:] or rounds_s)
    return found


def row_of(machine: Machine, name: str, tok_s: Mapping[str, float]) -> dict[str, str]:
    """Return the row of the table."""
    off, best = tok_s[OFF], _best(tok_s)
    ratios = {setting: f"{each / off:.3f}" for setting, each in tok_s.items()}
    auto = f"{tok_s[AUTO] / best:.3f}"
    return {"simulated": machine.name, "prompts": name, **ratios, "auto/best": auto}


def holds(title: str, tok_s: Mapping[str, float]) -> Iterator[bool]:
    """Print the bounds of a set of prompts on a machine; yield whether each holds."""
    auto, off, best = tok_s[AUTO], tok_s[OFF], _best(tok_s)
    yield verdict(f"{title}: auto / off {auto / off:.3f}", auto >= LEAST_OF_OFF * off)
    yield verdict(f"{title}: auto / best {auto / best:.3f}", auto >= LEAST_OF_BEST * best)


def _best(tok_s: Mapping[str, float]) -> float:
    return max(each for setting, each in tok_s.items() if setting != AUTO)


@tool
def main(arguments: Sequence[str] | None) -> int:
    """Return 0 if all bounds hold."""
    parser = prompts_parser(__doc__, {"tokens": 256, "per-set": 8, "rounds": 4})
    parser.add_argument("model", type=Path, nargs="?", default=edge.builtin_model())
    parser.add_argument("--noise", type=float, default=0.1)
    parser.add_argument("--share", type=float, default=0.25)
    parser.add_argument("--times", type=times_of, default=None)
    parser.add_argument("--read", type=float, default=0.0)
    given = parser.parse_args(arguments)
    sets = read_sets(given.prompts, given.per_set, given.sets)
    rows, held = list[dict[str, str]](), list[bool]()
    own = [Machine("the one that is given", given.times, given.read)] if given.times else []
    with opened(given.model, given.share, NGRAM) as model:
        for name, prompts in sets.items():
            texts, wrong_reads = recorded(model, prompts, given.tokens)
            reads = mean(each for text in texts for each in text.reads)
            print(f"{name}: a token reads {reads:.1f} experts, a wrong row {wrong_reads:.1f}")
            for machine in [*MACHINES, *own]:
                tok_s = replayed(machine, texts, wrong_reads, given)
                rows.append(row_of(machine, name, tok_s))
                held += holds(f"simulated, {machine.name}: {name}", tok_s)
    give_table(rows, given.csv)
    return 0 if all(held) else 1


if __name__ == "__main__":
    sys.exit(main())
