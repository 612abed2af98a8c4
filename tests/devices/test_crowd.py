"""The choice of threads on a simulated machine of two processors that other programs use too."""

from haversack.devices.crowd import SHORT_SPIN_S, Crowd, Setting, settings_for


class Machine:
    """Passes take as long as the setting needs; `busy` other programs want a processor each."""

    def __init__(self, crowd: Crowd) -> None:
        self.crowd, self.busy, self.slowness = crowd, 0, 1
        self.elapsed_s = 0.0
        self.used: list[Setting] = []

    def pass_s(self, setting: Setting) -> float:
        """2 ms of work are shared. A thread that waits for one that does not run loses its time."""
        if self.busy == 0:
            return self.slowness * (0.0012 if setting.num_threads == 2 else 0.002)
        spins = setting.spin_s > SHORT_SPIN_S
        return self.slowness * {1: 0.003, 2: 0.020 if spins else 0.006}[setting.num_threads]

    def delayed_s(self, setting: Setting) -> float:
        """One thread beside one other program has a processor of its own."""
        crowded = self.busy + setting.num_threads > 2
        return 0.4 * self.pass_s(setting) * setting.num_threads if crowded and self.busy else 0.0

    def run(self, seconds: float) -> None:
        end_s = self.elapsed_s + seconds
        while self.elapsed_s < end_s:
            setting = self.crowd.setting(1)
            self.crowd.note(self.pass_s(setting), self.delayed_s(setting))
            self.elapsed_s += self.pass_s(setting)
            self.used.append(setting)

    def speed_of(self, seconds: float) -> float:
        """Return the passes a second over the next `seconds`."""
        num_before, began_s = len(self.used), self.elapsed_s
        self.run(seconds)
        return (len(self.used) - num_before) / (self.elapsed_s - began_s)


def machine() -> Machine:
    return Machine(Crowd(2))


def test_one_processor_is_left_to_others_or_half_of_them() -> None:
    assert [setting.num_threads for setting in settings_for(8)] == [8, 8, 7, 4, 2, 1]
    assert [setting.num_threads for setting in settings_for(2)] == [2, 2, 1]
    assert [setting.num_threads for setting in settings_for(1)] == [1, 1]


def test_a_free_machine_is_used_whole() -> None:
    free = machine()
    free.run(1.0)
    assert free.crowd.setting(1).num_threads == 2
    assert free.speed_of(60.0) > 0.98 / 0.0012


def test_a_slow_moment_leaves_all_threads_in_use() -> None:
    """The first pass takes long, as those do that wake threads and touch memory: so the setting in
    use looks slow until it is tried as the others are."""
    free = machine()
    free.slowness = 40
    free.run(0.04)
    free.slowness = 1
    free.run(0.5)
    assert 1 in [setting.num_threads for setting in free.used]  # a round was there
    assert free.crowd.setting(1).num_threads == 2


def test_beside_others_fewer_threads_compute() -> None:
    for busy in (1, 2, 4):
        crowded = machine()
        crowded.run(1.0)
        crowded.busy = busy
        crowded.run(1.0)
        assert crowded.crowd.setting(1).num_threads == 1
        assert crowded.speed_of(60.0) > 0.95 / 0.003


def test_few_long_passes_are_enough() -> None:
    crowded = machine()
    crowded.slowness, crowded.busy = 200, 2  # a pass of 0.6 s with one thread, of 4 s with two
    crowded.run(6.0)
    assert crowded.crowd.setting(1).num_threads == 1 and len(crowded.used) <= 6


def test_when_the_others_are_gone_all_threads_compute_again() -> None:
    for busy in (1, 2, 4):
        crowded = machine()
        crowded.busy = busy
        crowded.run(20.0)
        crowded.busy = 0
        crowded.run(20.0)
        assert crowded.crowd.setting(1).num_threads == 2


def test_where_the_system_tells_no_delays_rounds_still_find_it() -> None:
    crowded = machine()
    crowded.delayed_s = lambda setting: -1.0  # type: ignore[method-assign]
    crowded.run(1.0)
    crowded.busy = 2
    crowded.run(40.0)
    assert crowded.crowd.setting(1).num_threads == 1


def test_many_rows_are_computed_by_all_threads() -> None:
    crowded = machine()
    assert crowded.crowd.setting(512) == settings_for(2)[0]
    crowded.busy = 2
    crowded.run(2.0)
    assert crowded.crowd.setting(512) == settings_for(2)[1]


def test_a_few_rows_are_computed_as_a_single_one() -> None:
    crowded = machine()
    for busy in (0, 2):
        crowded.busy = busy
        crowded.run(20.0)
        assert crowded.crowd.setting(4) == crowded.crowd.setting(1)


def test_one_rank_has_nothing_to_choose() -> None:
    crowd = Crowd(1)
    for _ in range(1000):
        crowd.note(0.001, 0.0005)
        assert crowd.setting(1).num_threads == 1
