"""What do drafts without a model cost, before any row is computed?

    python -m haversack.tools.bench.drafts [--tokens 100000] [--steps 2000] [--rounds 5]

A text of random words, some of them frequent and some spans of it repeated, is given at once, as a
prompt is; then tokens are added one by one, each with a draft of 6. Bounds: 20 us of processor time
a token at the end of the text, and the planned bytes.
"""

import argparse
import random
import sys
import time
from collections.abc import Sequence
from statistics import median

from haversack.cache.ngram import NgramDrafter, NgramMemory, text_bytes
from haversack.devices.memory import anonymous_bytes
from haversack.tools.command_line import positive, tool, verdict

BOUND_US = 20.0
MOST_DRAFTED = 6
VOCABULARY, SPAN_TOKENS = 30_000, 20


def text_of(num_tokens: int) -> list[int]:
    """Return a text in which few tokens are frequent, and every fifth span is an earlier one."""
    drawn, tokens = random.Random(1), list[int]()
    while len(tokens) < num_tokens:
        if drawn.random() < 0.2 and len(tokens) > SPAN_TOKENS:
            first = drawn.randrange(len(tokens) - SPAN_TOKENS)
            tokens += tokens[first : first + SPAN_TOKENS]
        else:
            spans = range(SPAN_TOKENS)
            tokens += [int(drawn.paretovariate(0.7)) % VOCABULARY for _ in spans]
    return tokens[:num_tokens]


def measured_us(tokens: Sequence[int], num_given: int) -> tuple[float, float, int]:
    """Return the time of a token given at once and of one of those behind, and the bytes that the
    drafter takes."""
    text = list(tokens[:num_given])  # what the caller holds is no part of the drafter
    before = anonymous_bytes()
    drafter = NgramDrafter(NgramMemory(), len(tokens), 0, MOST_DRAFTED)
    begun_s = time.process_time()
    drafter.propose(text, 0)
    given_s = time.process_time() - begun_s
    begun_s = time.process_time()
    for token in tokens[num_given:]:
        text.append(token)
        drafter.propose(text, MOST_DRAFTED)
    step_s = (time.process_time() - begun_s) / (len(tokens) - num_given)
    taken_bytes = anonymous_bytes() - before
    drafter.close()
    return given_s / num_given * 1e6, step_s * 1e6, taken_bytes


@tool
def main(arguments: Sequence[str] | None) -> int:
    """Return 0 if all bounds hold."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tokens", type=positive, default=100_000)
    parser.add_argument("--steps", type=positive, default=2000)
    parser.add_argument("--rounds", type=positive, default=5)
    given = parser.parse_args(arguments)
    tokens = text_of(given.tokens + given.steps)
    rounds = [measured_us(tokens, given.tokens) for _ in range(given.rounds)]
    given_us, step_us = median(each[0] for each in rounds), median(each[1] for each in rounds)
    planned_bytes = text_bytes(len(tokens)) + NgramMemory().table.nbytes
    taken_bytes = max(each[2] for each in rounds)
    print(f"{given_us:.2f} us a token of a prompt")
    held = [
        verdict(f"{step_us:.2f} us a token with a draft <= {BOUND_US:.0f}", step_us <= BOUND_US),
        verdict(
            f"{taken_bytes} bytes <= {planned_bytes}, which are planned",
            taken_bytes <= planned_bytes,
        ),
    ]
    return 0 if all(held) else 1


if __name__ == "__main__":
    sys.exit(main())
