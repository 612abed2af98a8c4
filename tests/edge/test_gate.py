"""When drafts are computed: a gate on simulated machines."""

from collections.abc import Callable
from copy import deepcopy
from itertools import accumulate
from random import Random

import pytest

from haversack.edge.gate import Gate
from haversack.edge.pass_times import PassTimes

Cost = Callable[[int], float]  # seconds of a pass by its number of rows

CHEAP: Cost = lambda rows: 1 + 0.1 * (rows - 1)  # noqa: E731
DEAR: Cost = lambda rows: float(rows)  # noqa: E731
STEP: Cost = lambda rows: 1.0 if rows == 1 else 2 + 0.02 * rows  # noqa: E731


class Machine:
    """Generates texts with a gate, and counts what that takes."""

    def __init__(self, cost: Cost, rate: float, seed: int = 1) -> None:
        self.gate, self.cost, self.random = Gate(), cost, Random(seed)
        self.rate = self.true_rate = rate
        self.spent_s, self.num_tokens, self.rounds = 0.0, 0, list[int]()

    def run(self, num_tokens: int, base: int = 1) -> "Machine":
        """Decode so many tokens more. A drafted token comes true as often as `true_rate` says; the
        gate expects `rate`."""
        goal = self.num_tokens + num_tokens
        while self.num_tokens < goal:
            drafted = right = 0
            if self.gate.looks(base):
                survivals = [self.rate**number for number in range(1, 8 - base)]
                drafted = self.gate.num_worth(base, survivals)
                while right < drafted and self.random.random() < self.true_rate:
                    right += 1
            pass_s = self.cost(base + drafted) * self.random.uniform(0.9, 1.1)
            self.gate.note(base, drafted, right, pass_s)
            self.rounds.append(drafted)
            self.spent_s += pass_s
            self.num_tokens += base + right
        return self

    @property
    def speedup(self) -> float:
        """The tokens a second beside those without drafts, of one text."""
        return self.num_tokens * self.cost(1) / self.spent_s


def test_why_nothing_is_drafted_at_first_stays_true() -> None:
    machine = Machine(CHEAP, 0.9)
    for _ in range(3):
        assert machine.gate.why_closed == "too few tokens were decoded to know what pays"
        machine.run(1)


def test_right_drafts_are_computed_where_rows_are_cheap() -> None:
    machine = Machine(CHEAP, 0.9).run(2000)
    assert machine.speedup > 0.95 * (sum(0.9**n for n in range(7)) / CHEAP(7))
    assert not machine.gate.why_closed


@pytest.mark.parametrize("cost", [DEAR, lambda rows: 1 + 0.9 * (rows - 1)])
@pytest.mark.parametrize("rate", [0.0, 0.3, 0.7, 0.85])
def test_little_is_lost_where_drafts_cannot_pay(cost: Cost, rate: float) -> None:
    machine = Machine(cost, rate).run(1000)
    assert machine.speedup > 0.985
    assert machine.gate.why_closed


def test_why_rows_are_too_dear() -> None:
    machine = Machine(lambda rows: 1.5 * rows - 0.5, 1.0).run(500)
    assert "times as long as one of 1" in machine.gate.why_closed


def test_wrong_drafts_are_not_computed_where_rows_are_cheap() -> None:
    machine = Machine(CHEAP, 0.05).run(1000)
    assert machine.speedup > 0.985
    assert machine.gate.why_closed == "no token is likely enough"


def test_a_wrong_expectation_loses_little() -> None:
    """The rates say that nearly all come true, and none does."""
    machine = Machine(CHEAP, 0.9)
    machine.true_rate = 0.0
    machine.run(1000)
    assert machine.speedup > 0.98


def test_python_looks_seldom_where_its_looks_are_in_vain() -> None:
    """A text that begins to repeat itself is drafted soon all the same. Where the passes follow
    each other in a native call, looks cost little, and none is left out."""
    gate = Machine(CHEAP, 0.9).run(300).gate
    skipped = list[int]()
    for _ in range(160):
        while not gate.looks(1):
            gate.note(1, 0, 0, 1.0)
        drafted = gate.num_worth(1, [0.05] * 6)  # at times for a trial
        gate.note(1, drafted, 0, CHEAP(1 + drafted))
        skipped.append(gate.most_blind - 1)
    assert skipped[:7] == [0] * 7 and max(skipped[:16]) <= 2 and skipped[-1] == 15
    gate.note_plain(32, 32.0, 1.0)
    assert gate.is_looking(1) and not gate.num_worth(1, [0.05] * 6)
    gate.note_plain(32, 32.0, 1.0)
    assert gate.is_looking(1)


@pytest.mark.parametrize("cost", [CHEAP, DEAR, STEP])
@pytest.mark.parametrize("num_plain", [0, 2100])  # a trial is due then
def test_what_is_not_watched_for_is_not_worth_it(cost: Cost, num_plain: int) -> None:
    """`needs` say where a look at a draft is worth it: they leave none out that would be computed,
    and without a trial they name no other."""
    gate, random = Machine(cost, 0.9).run(400).gate, Random(1)
    gate.note(1, 1, 0, cost(2))
    for _ in range(num_plain):
        gate.note(1, 0, 0, 1.0)
    num_wanted = 0
    for _ in range(300):
        survivals = sorted((random.random() for _ in range(random.randint(1, 6))), reverse=True)
        sums = list(accumulate(survivals))
        is_watched = any(a >= b for a, b in zip(sums, gate.needs(1), strict=False))
        is_wanted = deepcopy(gate).num_worth(1, survivals) > 0
        assert is_watched or not is_wanted
        assert is_wanted or not is_watched or num_plain
        num_wanted += is_wanted
    assert num_wanted or (cost is DEAR and not num_plain)


def test_trials_find_that_many_rows_pay_where_two_do_not() -> None:
    machine = Machine(STEP, 0.95).run(4000)
    late = machine.rounds[-200:]
    assert sum(late) / len(late) > 4


def test_a_second_row_that_takes_three_tokens_does_not_hide_that_seven_take_four() -> None:
    """A trial costs little where its tokens are likely to be right."""
    machine = Machine(lambda rows: 1.0 if rows == 1 else 2.9 + 0.1 * rows, 0.98).run(600)
    late = machine.rounds[-40:]
    assert sum(late) / len(late) > 5


def test_a_trial_is_not_made_of_what_is_computed_anyway() -> None:
    """The first pass of three rows is held up: it is timed again, though two rows pay."""
    held_up = {3: 4.0}
    machine = Machine(lambda rows: held_up.pop(rows, 1 + 0.3 * (rows - 1)), 0.95).run(1500)
    assert machine.gate.times.num_timed[3] > 2
    assert machine.speedup > 0.95 * (sum(0.95**n for n in range(7)) / (1 + 0.3 * 6))


def test_a_machine_that_changes_is_noticed() -> None:
    machine = Machine(CHEAP, 0.9).run(500)
    machine.cost = DEAR
    machine.run(500)
    assert sum(machine.rounds[-100:]) < 10
    machine.cost = CHEAP
    machine.run(8000)
    assert sum(machine.rounds[-100:]) > 300


def test_each_number_of_texts_has_its_own_base() -> None:
    """Seven rows are the most: six texts leave room for one."""
    machine = Machine(CHEAP, 0.9).run(500).run(1000, base=6)
    assert set(machine.rounds[-50:]) <= {0, 1} and 1 in machine.rounds[-50:]


def test_seconds_saved_are_those_of_the_tokens_less_those_of_the_passes() -> None:
    gate = Gate()
    for _ in range(9):
        gate.note(1, 0, 0, 1.0)
    gate.note(1, 3, 2, 1.5)
    gate.note(1, 0, 0, 1.25)  # what a change of the number of rows costs is the round's
    assert gate.saved_s == pytest.approx(3 - 1.5 - 0.25)


def test_passes_that_were_not_timed_cost_what_fewer_rows_did() -> None:
    times = PassTimes()
    times.note(1, 1.0)
    assert times.of(3) == pytest.approx(1 + 2 * 0.7)
    times.note(2, 1.2)
    assert times.of(4) == pytest.approx(1.6)


def test_what_only_the_first_pass_of_so_many_rows_takes_says_nothing_of_later_ones() -> None:
    """llama.cpp makes its graph for them."""
    times = PassTimes()
    times.note(2, 60.0)
    times.note(2, 1.2)
    assert times.of(2) == pytest.approx(1.2)
    gate = Gate()
    for _ in range(9):
        gate.note(1, 0, 0, 1.0)
    gate.note(1, 1, 0, 60.0)
    gate.note(1, 0, 0, 1.0)
    assert gate.saved_s == pytest.approx(-1.0)  # as two passes of one row
    gate.note_plain(32, 32.0, 1.0)
    assert gate.looks(1) and gate.num_worth(1, [0.9]) == 1  # it has credit for another trial


def test_a_pass_that_was_held_up_counts_little() -> None:
    times = PassTimes()
    for _ in range(8):
        times.note(1, 1.0)
    times.note(1, 1000.0)
    assert times.of(1) < 1.5


def test_a_round_that_was_held_up_does_not_close_the_gate_for_long() -> None:
    machine = Machine(CHEAP, 0.9).run(500)
    machine.gate.note(1, 6, 3, 3600.0)
    machine.run(3000)
    assert sum(machine.rounds[-100:]) > 300


def test_a_drafter_that_computes_must_pay_for_its_tokens() -> None:
    """A token that takes two single tokens to draft never pays; a cheap one is drafted on behind
    tokens that are likely, not behind others."""
    dear, cheap = Gate(), Gate()
    dear.draft_times.note(1, 2.0, 0, 0.0)
    cheap.draft_times.note(1, 0.2, 0, 0.0)
    for gate in (dear, cheap):
        for _ in range(9):
            gate.note(1, 0, 0, 1.0)
    assert not dear.looks(1) and dear.why_closed == "a drafted token takes 2.00 single tokens"
    assert cheap.looks(1) and cheap.pays(1, []) and not cheap.pays(1, [0.1])


def test_what_a_drafter_takes_is_lost_even_if_nothing_comes_of_it() -> None:
    gate = Gate()
    for _ in range(9):
        gate.note(1, 0, 0, 1.0)
    gate.note_drafter(2, 0.5, 32, 3.2)
    assert gate.saved_s == pytest.approx(-0.5 - 3.2 / 32)
    for _ in range(40):
        gate.note_drafter(2, 0.5, 0, 0.0)
    assert not gate.looks(1) and gate.why_closed == "drafts have lost time"


def test_texts_that_begin_together_after_one_that_drafted_draft_too() -> None:
    """Its passes had two rows as well."""
    machine = Machine(CHEAP, 0.9).run(500)
    for _ in range(20):
        machine.gate.note(1, 1, 1, CHEAP(2))
    machine.rounds.clear()
    assert sum(machine.run(500, base=2).rounds) > 100


def test_a_text_is_not_watched_before_its_passes_are_known() -> None:
    gate = Gate()
    for _ in range(20):
        gate.note(2, 0, 0, 1.0)
    assert gate.is_looking(2) and not gate.is_looking(1)


@pytest.mark.parametrize("cost", [DEAR, STEP])
def test_a_trial_that_is_too_dear_is_put_off(cost: Cost) -> None:
    """Each look ends a native call."""
    gate, random, num_looks = Gate(), Random(1), 0
    for _ in range(4000):
        survivals, drafted = [0.3 * random.random() ** number for number in range(6)], 0
        is_watched = gate.is_looking(1) and any(
            a >= b for a, b in zip(accumulate(survivals), gate.needs(1), strict=True)
        )
        if gate.looks(1) and is_watched:
            num_looks += 1
            drafted = gate.num_worth(1, survivals)
        gate.note(1, drafted, 0, cost(1 + drafted))
    assert num_looks < 4000 / 10


def test_texts_that_are_all_short_are_timed_too() -> None:
    gate = Gate()
    for number in range(100):
        gate.note_unusual()
        for _ in range(8):
            gate.note(1, 0, 0, 3.0 if number < 3 else 1.0)
    assert gate.times.of(1) < 1.2


def test_a_pass_that_is_held_up_while_it_is_timed_anew_counts_little() -> None:
    times = PassTimes()
    for _ in range(16):
        times.note(1, 1.0)
    times.doubt(1)
    times.note(1, 100.0)
    assert times.of(1) <= 2


def test_a_pass_without_drafts_is_timed_anew_while_drafts_follow_each_other() -> None:
    """A text begins with experts that are not in slots; where it repeats itself they are, and each
    token would cost less without drafts too."""
    gate = Gate()
    for _ in range(9):
        gate.note(1, 0, 0, 4.0)
    for _ in range(60):
        drafted = gate.num_worth(1, [0.9] * 6) if gate.looks(1) else 0
        gate.note(1, drafted, drafted, 1.0 + 0.9 * drafted)
    assert gate.times.of(1) < 2


def test_the_first_passes_of_a_text_say_nothing_of_later_ones() -> None:
    gate = Gate()
    for _ in range(40):
        gate.note(1, 0, 0, 1.0)
    gate.note_unusual()
    for _ in range(8):
        gate.note(1, 0, 0, 9.0)
    assert gate.times.of(1) == pytest.approx(1.0)


def test_passes_that_followed_each_other_count_as_if_one_by_one() -> None:
    one_by_one, at_once = Gate(), Gate()
    for gate in (one_by_one, at_once):
        for _ in range(9):
            gate.note(1, 0, 0, 1.0)
    for _ in range(50):
        one_by_one.note(1, 0, 0, 1.1)
    at_once.note_plain(50, 55.0, 1.1)
    assert at_once.times.of(1) == pytest.approx(one_by_one.times.of(1), rel=0.05)
    assert at_once._credit_s == pytest.approx(one_by_one._credit_s)
    assert at_once._since_round == one_by_one._since_round
