"""A short version of the benchmark of many clients."""

import asyncio

from haversack.edge.loading import builtin_model
from haversack.tools.bench.clients import Load, measure, served


def test_many_clients_get_the_answers_of_a_lone_one() -> None:
    with served(builtin_model(), "160MiB", parallel=4, queue=8) as url:
        outcome = asyncio.run(measure(url, Load(20, seconds=2, seeds=1, max_tokens=16)))
    assert outcome.is_good, str(outcome)
    assert outcome.counts["refused"] > 0  # 12 find room
