"""Experts that drafts read: beyond what their tokens would have read one by one."""

import pytest

from haversack.edge.extra_reads import ExtraReads


def test_wrong_rows_read_more_and_rows_that_share_experts_less() -> None:
    counted = ExtraReads()
    for num_tokens, num_reads in ((1, 4), (8, 40), (1, 16)):
        counted.note(num_tokens, 0, num_reads)
    assert counted.number == 0
    counted.note(1, 3, 20)  # three wrong rows beside a token that reads six
    assert counted.number == pytest.approx(14)
    counted.note(4, 3, 18)
    assert counted.number == pytest.approx(14 - 6)


def test_the_mean_follows_the_text() -> None:
    counted = ExtraReads()
    counted.note(100, 0, 0)
    for _ in range(2000):
        counted.note(1, 0, 10)
    counted.note(2, 1, 20)
    assert counted.number == pytest.approx(0, abs=0.1)
