"""Several models in one process: budgets of their own and shared ones, never over the sum."""

import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from haversack import edge
from haversack.devices.backends import Device
from haversack.devices.ledger import ledger
from haversack.devices.system.cgroup import run_limited, why_not
from haversack.edge.model_devices import ModelDevices
from haversack.edge.planner import streamed
from haversack.tools.models.architectures import TinyShape

TinyModel = Callable[..., Path]
MIB = 2**20
SHAPE = TinyShape(num_hidden_layers=4, num_experts=16)


@pytest.fixture
def options(trunk_dir: Path) -> edge.LoadOptions:
    return edge.LoadOptions(cache_dir=trunk_dir, warm_start=False)


def own_bytes(path: Path) -> int:
    return edge.plan(path, ram="4GiB", ctx=256, threads=1).own_bytes


# --------------------------------------------------------------- a shared budget
def test_two_models_share_a_budget(tiny_model: TinyModel, options: edge.LoadOptions) -> None:
    first, second = tiny_model("qwen3moe", shape=SHAPE), tiny_model("deepseek2", shape=SHAPE)
    process = edge.plan(first, ram="4GiB").process_bytes
    budget = edge.Budget(process + own_bytes(first) + own_bytes(second) + 16 * MIB)
    with (
        edge.load(first, ram=budget, ctx=256, threads=1) as one,
        edge.load(second, ram=budget, ctx=256, threads=1, options=options) as two,
    ):
        assert one.plan.mode == two.plan.mode == "resident"
        assert budget.room_bytes == budget.limit_bytes - one.plan.own_bytes - two.plan.own_bytes
        assert two.plan.ram_bytes == budget.limit_bytes - one.plan.own_bytes
        assert "model 1" in str(budget) and "left" in str(budget)
    assert budget.room_bytes == budget.limit_bytes


def test_the_second_model_streams_in_what_is_left(
    tiny_model: TinyModel, options: edge.LoadOptions
) -> None:
    first, second = tiny_model("qwen3moe", shape=SHAPE), tiny_model("olmoe", shape=SHAPE)
    process = edge.plan(first, ram="4GiB").process_bytes
    budget = edge.Budget(process + own_bytes(first) + own_bytes(second) - 8 * MIB)
    with (
        edge.load(first, ram=budget, ctx=256, threads=1) as one,
        edge.load(second, ram=budget, ctx=256, threads=1, options=options) as two,
    ):
        assert (one.plan.mode, two.plan.mode) == ("resident", "streamed")
        assert two.generate([1, 2, 3], max_tokens=4).text
        with pytest.raises(edge.BudgetError, match="needs at least"):
            edge.plan(first, ram=budget, ctx=256)


def test_a_budget_is_whole_again_in_whatever_order_models_close(
    tiny_model: TinyModel, options: edge.LoadOptions
) -> None:
    paths = [tiny_model(name, shape=SHAPE) for name in ("qwen3moe", "deepseek2", "lfm2moe")]
    budget = edge.Budget("2GiB")
    for order in ((1, 2, 0), (2, 0, 1)):
        models = [edge.load(path, ram=budget, ctx=256, threads=1) for path in paths]
        for number in order:
            room_bytes = budget.room_bytes
            models[number].close()
            models[number].close()
            assert budget.room_bytes == room_bytes + models[number].plan.own_bytes
        assert budget.room_bytes == budget.limit_bytes
        assert ledger.untouched_bytes() == 0


def test_a_failed_load_gives_its_part_back(tiny_model: TinyModel, tmp_path: Path) -> None:
    path, budget = tiny_model("qwen3moe", shape=SHAPE), edge.Budget("1GiB")

    def fail(_: str, share: float) -> None:
        if share > 0.5:
            raise ZeroDivisionError

    failing = edge.LoadOptions(progress=fail, cache_dir=tmp_path)
    before = ledger.others_bytes()
    for _ in range(3):
        with pytest.raises(ZeroDivisionError):
            edge.load(path, ram=budget, ctx=256, options=failing)
    assert budget.room_bytes == budget.limit_bytes
    assert ledger.others_bytes() - before < 4 * MIB


def test_two_plans_of_one_budget_cannot_both_take_it(
    tiny_model: TinyModel, options: edge.LoadOptions
) -> None:
    path = tiny_model("qwen3moe", shape=SHAPE)
    process = edge.plan(path, ram="4GiB").process_bytes
    budget = edge.Budget(process + own_bytes(path) + 4 * MIB)
    plans = [edge.plan(path, ram=budget, ctx=256, threads=1) for _ in range(2)]
    with edge.load(plans[0], options=options):
        with pytest.raises(edge.BudgetError, match=r"other models .* raise --ram") as caught:
            edge.load(plans[1], options=options)
        assert caught.value.have_bytes == budget.limit_bytes < caught.value.need_bytes


# ------------------------------------------------------- other memory in the process
def test_memory_that_came_after_the_plan_shrinks_the_slots(
    tiny_model: TinyModel, options: edge.LoadOptions
) -> None:
    path = tiny_model("qwen3moe", shape=TinyShape(num_hidden_layers=8, num_experts=64))
    rich = edge.plan(path, ram="4GiB", ctx=256, threads=1)
    planned = edge.plan(path, ram=rich.full_bytes - 4 * MIB, ctx=256, threads=1)
    assert planned.mode == "streamed"
    array = np.ones(planned.slot_bytes // 2, np.uint8)
    with edge.load(planned, options=options) as model:
        experts = model._loop.engine.experts
        assert experts is not None
        slots = sum(pool.plan.num_bytes for pool in experts.pools)
        slack_bytes = 64 * MIB  # at most so far lay the plan's figure above what it measured
        assert 0 < slots <= planned.slot_bytes - (len(array) - slack_bytes)
        assert model.generate([1, 2, 3], max_tokens=4).text
    del array


def test_memory_that_came_after_a_plan_without_slots_is_refused(tiny_model: TinyModel) -> None:
    path = tiny_model("qwen3moe", shape=SHAPE)
    rich = edge.plan(path, ram="4GiB", ctx=256, threads=1)
    planned = edge.plan(path, ram=rich.full_bytes, ctx=256, threads=1)
    array = np.ones(200 * MIB, np.uint8)
    with pytest.raises(edge.BudgetError, match=r"the process holds .* raise --ram"):
        edge.load(planned)
    del array
    edge.load(planned).close()


def test_an_open_model_is_not_in_the_next_ones_plan(
    tiny_model: TinyModel, options: edge.LoadOptions
) -> None:
    path, other = tiny_model("qwen3moe", shape=SHAPE), tiny_model("olmoe", shape=SHAPE)
    half = streamed(edge.plan(other, ram="1GiB", ctx=256, threads=1), 0.5)
    application = np.ones(40 * MIB, np.uint8)  # a process near the least figure would cross it
    with edge.load(half, options=options) as model:  # a process grows when it does it all first
        model.logits(range(1, 200), prefill=190)
    alone = edge.plan(path, ram="1GiB", ctx=256, threads=1)
    with edge.load(half, options=options) as model:
        assert edge.plan(path, ram="1GiB", ctx=256, threads=1) == alone
        model.logits(range(1, 200), prefill=190)
        assert edge.plan(path, ram="1GiB", ctx=256, threads=1) == alone
    assert edge.plan(path, ram="1GiB", ctx=256, threads=1) == alone
    assert application.all()


def test_a_model_is_loaded_while_another_one_generates(
    tiny_model: TinyModel, options: edge.LoadOptions
) -> None:
    path, other = tiny_model("qwen3moe", shape=SHAPE), tiny_model("olmoe", shape=SHAPE)
    planned = streamed(edge.plan(path, ram="1GiB", ctx=512, threads=1), 0.3)
    started, enough = threading.Event(), threading.Event()
    with edge.load(planned, options=options) as model:

        def generate() -> None:
            while not enough.is_set():
                assert model.generate([1, 2, 3], max_tokens=20, temperature=0).text
                started.set()

        expected = model.generate([1, 2, 3], max_tokens=20, temperature=0).text
        thread = threading.Thread(target=generate)
        thread.start()
        assert started.wait(timeout=300)
        budget = edge.Budget("1GiB")
        for _ in range(3):
            with edge.load(other, ram=budget, ctx=256, threads=1) as second:
                assert second.generate([1, 2], max_tokens=3).text
        enough.set()
        thread.join(timeout=300)
        assert not thread.is_alive()
        assert budget.room_bytes == budget.limit_bytes
        assert model.generate([1, 2, 3], max_tokens=20, temperature=0).text == expected


# Opens two models with tight budgets of their own, uses them, closes the first, and uses the
# second; prints what was given and the most that was held, with both open and after.
TWO_MODELS = """
import sys
from pathlib import Path
from haversack import edge
from haversack.devices.memory import PeakMeter

options = edge.LoadOptions(cache_dir=Path(sys.argv[3]), warm_start=False)
given, models = 0, []
meter = PeakMeter()
for path in sys.argv[1:3]:
    rich = edge.plan(path, ram="4GiB", ctx=256, threads=1)
    planned = edge.plan(path, ram=(rich.floor_bytes + rich.full_bytes) // 2, ctx=256, threads=1)
    assert planned.mode == "streamed"
    models.append(edge.load(planned, options=options))
    given += planned.ram_bytes
for model in models:
    model.logits(range(1, 250), prefill=200)
print(given, meter.look())
models[0].close()
meter = PeakMeter()
models[1].logits(range(1, 250), prefill=200)
print(models[1].plan.ram_bytes, meter.look())
"""


def test_two_models_stay_within_the_sum_and_the_second_within_its_own(
    tiny_model: TinyModel, trunk_dir: Path
) -> None:
    paths = [tiny_model(name, shape=SHAPE) for name in ("qwen3moe", "olmoe")]
    command = [sys.executable, "-c", TWO_MODELS, *map(str, paths), str(trunk_dir)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for line in done.stdout.splitlines():
        given, held = map(int, line.split())
        assert 0.3 * given < held <= given


# Two models share a budget that holds the first and some experts of the second; prints the budget,
# the most that was held, and what the entries of both and the process hold.
SHARED = """
import sys
from pathlib import Path
from haversack import edge
from haversack.devices.memory import PeakMeter

options = edge.LoadOptions(cache_dir=Path(sys.argv[3]), warm_start=False)
plans = [edge.plan(path, ram="4GiB", ctx=256, threads=1) for path in sys.argv[1:3]]
process_bytes = plans[0].process_bytes
budget = edge.Budget(process_bytes + sum(plan.own_bytes for plan in plans) - 6 * 2**20)
meter = PeakMeter()
models = [edge.load(path, budget, 256, 1, options=options) for path in sys.argv[1:3]]
assert [model.plan.mode for model in models] == ["resident", "streamed"]
for model in models:
    model.logits(range(1, 250), prefill=200)
entries = [model.budget() for model in models]
held = sum(entry.held_bytes for entry in (*entries[0], *entries[1][1:]))  # one process
print(budget.limit_bytes, meter.look(), held)
"""


@pytest.mark.skipif(bool(why_not()), reason=f"{why_not()}")
def test_a_shared_budget_holds_in_a_group_of_little_more(
    tiny_model: TinyModel, trunk_dir: Path
) -> None:
    paths = [tiny_model(name, shape=SHAPE) for name in ("qwen3moe", "olmoe")]
    command = [sys.executable, "-c", SHARED, *map(str, paths), str(trunk_dir)]
    done = run_limited(command, 192 * MIB, timeout_s=300)
    assert done.returncode == 0, done.stderr
    limit_bytes, peak_bytes, held_bytes = map(int, done.stdout.split())
    assert 0.3 * limit_bytes < held_bytes <= peak_bytes + MIB <= limit_bytes + MIB
    assert limit_bytes < 136 * MIB  # the group has room for file pages beside it


# Loads a model whose slots hold copies of two precisions in a budget between its floor and all,
# runs a prompt and single tokens, and prints the budget, the most that was held, and the uses.
TWO_PRECISIONS = """
import sys
from haversack import edge
from haversack.devices.memory import PeakMeter

path, low_from, cache_dir, mode = sys.argv[1:]
fidelity = edge.Fidelity(mode, low_from)
options = edge.LoadOptions(cache_dir=cache_dir, warm_start=False, fidelity=fidelity)
rich = edge.plan(path, ram="4GiB", ctx=256, threads=1)
meter = PeakMeter()
with edge.load(path, (rich.floor_bytes + rich.full_bytes) // 2, 256, 1, options=options) as model:
    assert model.plan.fidelity == mode
    for start in range(3):  # other experts each time, so that copies of both kinds come and go
        model.logits(range(1 + start, 250), prefill=200)
    stats = model.stats()
    model.check_integrity()
print(model.plan.ram_bytes, meter.look(), stats.uses_low, stats.uses_skipped)
"""


@pytest.mark.skipif(bool(why_not()), reason=f"{why_not()}")
@pytest.mark.parametrize("mode", ["balanced", "fast"])
def test_a_budget_holds_with_two_precisions(
    mode: str, tiny_model: TinyModel, trunk_dir: Path
) -> None:
    shape = TinyShape(num_hidden_layers=8, num_experts=32, num_experts_per_tok=4)
    model, low = (tiny_model(shape=shape, expert_type=kind) for kind in ("Q8_0", "Q4_K"))
    command = [sys.executable, "-c", TWO_PRECISIONS, str(model), str(low), str(trunk_dir), mode]
    done = run_limited(command, 224 * MIB, timeout_s=300)
    assert done.returncode == 0, done.stderr
    limit_bytes, peak_bytes, uses_low, uses_skipped = map(int, done.stdout.split())
    assert 0.5 * limit_bytes < peak_bytes <= limit_bytes < 160 * MIB  # the rest is for file pages
    assert uses_low > 0 and (uses_skipped > 0 or mode == "balanced")


# ---------------------------------------------------------------- a model's entries
@pytest.mark.parametrize("share", [None, 0.3])
def test_the_entries_of_a_model_add_up_to_its_budget(
    tiny_model: TinyModel, options: edge.LoadOptions, share: float | None
) -> None:
    planned = edge.plan(tiny_model("qwen3moe", shape=SHAPE), ram="1GiB", ctx=256, threads=1)
    if share is not None:
        planned = streamed(planned, share)
    with edge.load(planned, options=options) as model:
        begun = {entry.name: entry for entry in model.budget()}
        model.logits(range(1, 250), prefill=200)
        used = {entry.name: entry for entry in model.budget()}
        assert used["process"].held_bytes <= planned.process_bytes
    assert list(used) == list(begun) and {"trunk", "kv", "sampling", "process", "slots"} <= {*used}
    assert sum(entry.reserved_bytes for entry in used.values()) == planned.ram_bytes
    for name in begun:
        assert 0 <= used[name].held_bytes <= used[name].reserved_bytes
    assert begun["trunk"].held_bytes == begun["trunk"].reserved_bytes == planned.trunk_bytes
    if share is None:
        assert used["experts"].held_bytes == planned.slot_bytes
    else:
        assert 0 == begun["slots"].held_bytes < used["slots"].held_bytes
    with pytest.raises(edge.ClosedError):
        model.budget()


# ------------------------------------------------------------------ memory of devices
def test_a_budget_holds_memory_of_devices(tiny_model: TinyModel, rpc_device: Device) -> None:
    path = tiny_model("qwen3moe", shape=SHAPE)
    budget = edge.Budget("1GiB", vram=f"{rpc_device.name}=32MiB")
    assert budget.devices[rpc_device.name].limit_bytes == 32 * MIB
    assert rpc_device.name in str(budget)
    (placed,) = edge.plan(path, ram=budget, ctx=256).devices
    assert placed.budget_bytes == 32 * MIB and placed.num_slots == 64
    with pytest.raises(edge.PromptError, match="says vram already"):
        edge.plan(path, ram=budget, vram="1GiB")


def test_two_models_never_take_more_of_a_device_than_its_budget(
    tiny_model: TinyModel, rpc_device: Device
) -> None:
    path = tiny_model("qwen3moe", shape=SHAPE)
    whole = edge.plan(path, ram="1GiB", ctx=256, vram=f"{rpc_device.name}=32MiB").devices[0]
    vram = {rpc_device.name: whole.planned_bytes + whole.planned_bytes // 2}
    budget = edge.Budget("1GiB", vram=vram)
    first, second = (edge.plan(path, ram=budget, ctx=256) for _ in range(2))
    opened = ModelDevices(first)
    memory = budget.devices[rpc_device.name]
    assert memory.left_bytes == whole.planned_bytes // 2
    with pytest.raises(edge.BudgetError, match=r"is left, .* too few: raise --vram") as caught:
        ModelDevices(second)
    assert caught.value.have_bytes == memory.limit_bytes
    assert edge.plan(path, ram=budget, ctx=256).devices[0].num_slots < whole.num_slots
    opened.close()
    assert memory.left_bytes == memory.limit_bytes


# ----------------------------------------------------------------- rows of logits
def test_rows_that_do_not_fit_are_refused_before_they_are_computed(
    tiny_model: TinyModel, options: edge.LoadOptions
) -> None:
    path = tiny_model("qwen3moe", shape=TinyShape(num_experts=16, vocab_size=40_000))
    floor = edge.plan(path, ram="4GiB", ctx=1024, threads=1).floor_bytes
    with edge.load(path, ram=floor + 4 * MIB, ctx=1024, threads=1, options=options) as model:
        with pytest.raises(edge.BudgetError, match=r"900 rows of logits need .* iter_logits or"):
            model.logits([1] * 901, prefill=2)
        assert model.stats().prompt_tokens == 0
        rows = model.logits([1] * 12, prefill=2)
        assert rows.shape == (11, 40_000)
        alone = list(model.iter_logits([1] * 12, prefill=2))
        assert (rows == np.stack(alone)).all()


def test_a_budget_needs_a_size() -> None:
    with pytest.raises(edge.UnitError):
        edge.Budget("8 bananas")
    assert edge.Budget("8GiB").limit_bytes == edge.Budget(8 * 2**30).room_bytes == 8 * 2**30
