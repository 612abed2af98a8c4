"""How far routers may lean to experts with a copy."""

import pytest

from haversack.cache.routing import Leaning


def test_a_quarter_of_the_experts_stays() -> None:
    assert [Leaning.of(used, 0.1).num_kept for used in (1, 2, 4, 6, 8, 10)] == [1, 1, 1, 1, 2, 2]


def test_what_makes_no_sense_is_refused() -> None:
    for bias, num_kept in ((-0.1, 1), (1.1, 1), (float("nan"), 1), (0.5, 0)):
        with pytest.raises(ValueError, match="at least one expert is kept"):
            Leaning(bias, num_kept)
