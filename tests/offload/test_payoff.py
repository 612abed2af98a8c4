"""Reading ahead is tried, kept where it is faster, left where it is not, and tried again."""

import random
import statistics

import pytest

from haversack.offload.payoff import KEEP_PASSES, TRIAL_PASSES, WARM_PASSES, Payoff, gain


def run(payoff: Payoff, passes: int, with_s: float, without_s: float) -> tuple[list[bool], float]:
    """Which way each pass went, and the seconds of all, on a machine that is noisy by 10 %."""
    rng, ways, total_s = random.Random(0), [], 0.0
    for _ in range(passes):
        pass_s = (with_s if payoff.on else without_s) * rng.uniform(0.95, 1.05)
        ways.append(payoff.on)
        total_s += pass_s
        payoff.note_pass(pass_s, 20)
    return ways, total_s


def test_it_is_on_at_first_and_then_tried_both_ways() -> None:
    ways, _ = run(Payoff(), WARM_PASSES + TRIAL_PASSES, 1.0, 1.0)
    assert all(ways[:WARM_PASSES])
    assert ways[WARM_PASSES:] == TRIAL_PASSES // 4 * [True, False, False, True]


@pytest.mark.parametrize(
    ("with_s", "kept"), [(0.85, True), (0.95, True), (1.08, False), (1.2, False)]
)
def test_the_faster_way_is_kept(with_s: float, kept: bool) -> None:
    ways, _ = run(Payoff(), WARM_PASSES + TRIAL_PASSES + KEEP_PASSES, with_s, 1.0)
    assert set(ways[-KEEP_PASSES:]) == {kept}


@pytest.mark.parametrize("with_s", [0.8, 0.95, 1.05, 1.2])
def test_trying_costs_less_than_two_percent_of_the_better_way(with_s: float) -> None:
    passes = WARM_PASSES + 10 * (TRIAL_PASSES + KEEP_PASSES)
    _, total_s = run(Payoff(), passes, with_s, 1.0)
    assert total_s < 1.02 * passes * min(with_s, 1.0) * 1.005


@pytest.mark.parametrize(("with_s", "kept"), [(0.9, True), (1.1, False)])
def test_tokens_that_need_less_and_less_do_not_mislead_it(with_s: float, kept: bool) -> None:
    payoff = Payoff()
    run(payoff, WARM_PASSES, 1.0, 1.0)
    for number in range(TRIAL_PASSES):
        needed = round(300 * 0.9**number)
        pass_s = (1 + needed / 20 + (needed / 60) ** 2) * (with_s if payoff.on else 1.0)
        payoff.note_pass(pass_s, needed)
    assert payoff.on == kept


def test_a_change_is_noticed_in_the_next_trial() -> None:
    payoff = Payoff()
    run(payoff, WARM_PASSES + TRIAL_PASSES, with_s=1.2, without_s=1.0)
    assert not payoff.on
    ways, _ = run(payoff, KEEP_PASSES + TRIAL_PASSES + 1, with_s=0.8, without_s=1.0)
    assert ways[-1]


def test_a_single_slow_pass_decides_nothing() -> None:
    payoff = Payoff()
    run(payoff, WARM_PASSES, 0.8, 1.0)
    payoff.note_pass(50.0, 20)
    run(payoff, TRIAL_PASSES - 1, 0.8, 1.0)
    assert payoff.on


@pytest.mark.parametrize("saved", [0.0, 0.03, 0.1])
def test_what_tokens_need_is_told_from_what_reading_ahead_gives(saved: float) -> None:
    """Tokens of 5 to 40 experts, each of which takes as long as a twentieth of computing; those
    with reading ahead happened to need a third more."""
    rng = random.Random(1)

    def passes(least: int, share: float) -> list[tuple[float, int]]:
        needed = [rng.randint(least, least + 20) for _ in range(16)]
        return [((1 + num / 20) * share * rng.uniform(0.98, 1.02), num) for num in needed]

    found = gain(passes(15, 1 - saved), passes(5, 1.0))
    assert found == pytest.approx(saved, abs=0.03)
    assert statistics.median(s for s, _ in passes(15, 0.9)) > statistics.median(
        s for s, _ in passes(5, 1.0)
    )
