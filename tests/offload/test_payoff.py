"""Reading ahead goes on while it pays, stops when it does not, and is tried again."""

import pytest

from haversack.offload.payoff import TRIAL_EVERY_PASSES, WINDOW_PASSES, Payoff, Totals


def passes(
    payoff: Payoff, count: int, *, waited: float, right: float, start: int = 0
) -> list[bool]:
    """Whether it was on after each of `count` passes of a second, with four guesses each."""
    states = []
    for number in range(start, start + count):
        moment = float(number)
        totals = Totals(moment, waited * moment, 4 * number, int(4 * right * number))
        payoff.note_pass(totals)
        states.append(payoff.on)
    return states


def test_right_guesses_on_a_slow_disk_go_on() -> None:
    assert all(passes(Payoff(), 500, waited=0.5, right=0.75))


@pytest.mark.parametrize(("waited", "right"), [(0.1, 0.9), (0.9, 0.25)])
def test_it_stops_where_there_is_no_wait_or_no_right_guess(waited: float, right: float) -> None:
    states = passes(Payoff(), 30, waited=waited, right=right)
    assert states.index(False) == WINDOW_PASSES - 1
    assert not any(states[WINDOW_PASSES:])


def test_it_is_tried_again_now_and_then() -> None:
    payoff = Payoff()
    states = passes(payoff, 10 * TRIAL_EVERY_PASSES, waited=0.9, right=0.1)
    assert 0.05 < sum(states) / len(states) < 0.2
    while payoff.on:
        passes(payoff, 1, waited=0.9, right=0.1, start=10_000)
    start = 20_000
    states = passes(payoff, 200, waited=0.9, right=0.9, start=start)
    assert states[-1] and not states[0]  # it pays now, and stays
