"""Models with experts on devices: the same text, budgets that hold, and devices that go away."""

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from haversack import edge
from haversack.devices.backends import Device
from haversack.devices.errors import AbortedError, BudgetError, DeviceError
from haversack.devices.ledger import ledger
from haversack.edge.forecasting import forecast_of, known_facts
from haversack.edge.server.status import model_figures
from haversack.offload.expert_engine import ON_DEVICE
from haversack.offload.simulated import Link, SimulatedDevice
from haversack.tools.models.architectures import TinyShape

TinyModel = Callable[..., Path]
StartServer = Callable[..., Any]
MIB = 2**20
SHAPE = TinyShape(num_hidden_layers=4, num_experts=16)
PROMPT = list(range(3, 60))


@pytest.fixture(scope="module")
def path(tiny_model: TinyModel) -> Path:
    return tiny_model("qwen3moe", shape=SHAPE)


@pytest.fixture(scope="module")
def plain(path: Path) -> list[int]:
    """What llama.cpp alone writes."""
    with edge.load(path, ram="1GiB", ctx=256, threads=1) as model:
        assert model.plan.mode == "resident"
        return written(model)


@pytest.fixture(scope="module")
def floor_bytes(path: Path) -> int:
    return edge.plan(path, ram="4GiB", ctx=256, threads=1).floor_bytes


@pytest.fixture
def options(trunk_dir: Path) -> edge.LoadOptions:
    return edge.LoadOptions(cache_dir=trunk_dir, warm_start=False)


@pytest.fixture
def simulated() -> Iterator[SimulatedDevice]:
    with SimulatedDevice(64 * MIB, Link(1e12, latency_s=0)) as device:
        yield device


def written(model: edge.Model | edge.IsolatedModel) -> list[int]:
    generation = model.generate(PROMPT, 24, temperature=0)
    list(generation)
    return generation.tokens


def vram_for(path: Path, device: str, share: float) -> dict[str, int]:
    """Return a budget of the device for a share of the model's experts."""
    whole = edge.plan(path, ram="1GiB", ctx=256, vram={device: 32 * MIB}).devices[0]
    return {device: whole.scratch_bytes + int(share * whole.slot_bytes)}


# ------------------------------------------------------------------------ exactness
@pytest.mark.parametrize("placement", ["free", "fixed"])
@pytest.mark.parametrize("share", [0.05, 0.25, 1.0])
def test_the_text_is_the_same_wherever_experts_lie(
    path: Path,
    plain: list[int],
    rpc_device: Device,
    options: edge.LoadOptions,
    share: float,
    placement: str,
) -> None:
    vram = vram_for(path, rpc_device.name, share)
    with edge.load(path, "1GiB", 256, 1, options=options, vram=vram, placement=placement) as model:
        assert written(model) == plain
        assert written(model) == plain
        model.check_integrity()
        (use,) = model.devices()
        assert use.slots > 0 and not use.is_lost
        if placement == "fixed":
            held = [state for layer in model.held_experts().values() for state in layer]
            assert use.hits > 0 and held.count(ON_DEVICE) == use.slots
        assert sum(entry.reserved_bytes for entry in model.budget(use.name)) == use.budget_bytes


def test_ram_at_its_floor_and_experts_on_a_device(
    path: Path,
    plain: list[int],
    floor_bytes: int,
    rpc_device: Device,
    options: edge.LoadOptions,
) -> None:
    vram = vram_for(path, rpc_device.name, 0.5)
    budget = edge.Budget(floor_bytes + 64 * MIB, vram=vram)
    planned = edge.plan(path, floor_bytes + 64 * MIB, 256, 1, vram=vram)
    assert planned.devices[0].num_slots + planned.devices[0].num_staging >= 32 - 1
    with edge.load(path, budget, 256, 1, options=options) as model:
        assert written(model) == plain
        assert model.stats().ram_peak_bytes <= model.plan.ram_bytes


@pytest.mark.parametrize("share", [0.0, 0.5])
def test_layers_and_their_keys_and_values_lie_on_a_device(
    path: Path, plain: list[int], rpc_device: Device, options: edge.LoadOptions, share: float
) -> None:
    vram = {rpc_device.name: "64MiB"}
    options = replace(options, trunk="device")
    whole = edge.plan(path, "1GiB", 256, 1, vram=vram, trunk="device")
    assert whole.placement == "fixed"  # copies would share llama.cpp's connection
    (all_there,) = whole.devices
    assert all_there.num_layers == 4 + 1 and all_there.trunk_bytes > all_there.kv_bytes > 0
    assert all_there.num_slots == 64
    if share:
        parts = all_there.scratch_bytes + all_there.slot_bytes // 64 + all_there.compute_bytes
        vram = {rpc_device.name: str(parts + all_there.trunk_bytes // 2) + "B"}
    with edge.load(path, "1GiB", 256, 1, options=options, vram=vram) as model:
        (placed,) = model.plan.devices
        assert (0 < placed.num_layers < 5) if share else placed.num_layers == 5
        assert model.plan.trunk_bytes + placed.trunk_bytes == whole.geometry.trunk_bytes
        assert written(model) == plain
        assert written(model) == plain
        model.check_integrity()


def test_a_fixed_placement_repeats(
    path: Path, rpc_device: Device, options: edge.LoadOptions
) -> None:
    uses = list[int]()
    for _ in range(2):
        vram = vram_for(path, rpc_device.name, 0.25)
        with edge.load(
            path, "1GiB", 256, 1, options=options, vram=vram, placement="fixed"
        ) as model:
            written(model)
            uses.append(model.devices()[0].hits)
            assert model.devices()[0].promoted == 0
    assert uses[0] == uses[1] > 0


def test_a_server_tells_of_devices(
    path: Path, rpc_device: Device, options: edge.LoadOptions
) -> None:
    vram, fixed = vram_for(path, rpc_device.name, 0.25), "fixed"
    with edge.load(path, "1GiB", 256, 1, options=options, vram=vram, placement=fixed) as model:
        written(model)
        figures = model_figures(model, with_experts=True)
        (device,) = figures["devices"]
        assert device["name"] == rpc_device.name and device["hits"] > 0
        assert figures["stats"]["device_hits"] == device["hits"]
        assert sum(layer.count(ON_DEVICE) for layer in figures["experts"]) == device["slots"]


# -------------------------------------------------------------------------- budgets
def test_a_device_never_gives_more_than_its_budget(
    path: Path, plain: list[int], simulated: SimulatedDevice, options: edge.LoadOptions
) -> None:
    budget = edge.Budget("2GiB", vram={simulated.name: 8 * MIB})
    with edge.load(path, budget, 256, 1, options=options) as model:
        assert written(model) == plain
        (use,) = model.devices()
        assert 0 < use.taken_bytes <= use.planned_bytes <= use.budget_bytes
        assert simulated.counts().peak_bytes <= use.budget_bytes
        assert budget.devices[simulated.name].left_bytes == 8 * MIB - use.planned_bytes
    assert simulated.counts().used_bytes == 0
    assert budget.devices[simulated.name].left_bytes == 8 * MIB


def test_layers_take_what_is_planned(
    path: Path, plain: list[int], simulated: SimulatedDevice, options: edge.LoadOptions
) -> None:
    planned = edge.plan(path, "1GiB", 256, 1, vram={simulated.name: 48 * MIB}, trunk="device")
    with edge.load(planned, options=options) as model:
        assert written(model) == plain
        (use,) = model.devices()
        assert model.plan.devices[0].num_layers == 5
        assert simulated.counts().peak_bytes <= use.planned_bytes <= use.budget_bytes
    assert simulated.counts().used_bytes == 0


def test_two_models_share_a_device(
    tiny_model: TinyModel, path: Path, simulated: SimulatedDevice, options: edge.LoadOptions
) -> None:
    other = tiny_model("olmoe", shape=SHAPE)
    first_bytes = vram_for(path, simulated.name, 1.0)[simulated.name]
    second_bytes = vram_for(other, simulated.name, 0.5)[simulated.name]
    budget = edge.Budget("2GiB", vram={simulated.name: first_bytes + second_bytes})
    with (
        edge.load(path, budget, 256, 1, options=options) as one,
        edge.load(other, budget, 256, 1, options=options) as two,
    ):
        assert one.plan.devices[0].num_slots == 64 > two.plan.devices[0].num_slots > 0
        assert written(one) and written(two)
        assert simulated.counts().peak_bytes <= first_bytes + second_bytes


def test_memory_that_was_taken_since_the_plan_is_missed(
    path: Path, simulated: SimulatedDevice, options: edge.LoadOptions
) -> None:
    planned = edge.plan(path, "1GiB", 256, 1, vram={simulated.name: 48 * MIB})
    before = ledger.others_bytes()
    simulated.fail("allocation", 1)
    with pytest.raises(BudgetError, match=f"{simulated.name} does not give"):
        edge.load(planned, options=options)
    assert ledger.others_bytes() - before < 4 * MIB
    with edge.load(planned, options=options) as model:
        assert written(model)


# ----------------------------------------------------------------- the command line
def test_a_run_and_its_plan_tell_of_the_device(
    path: Path, start_rpc_server: StartServer, trunk_dir: Path
) -> None:
    server = start_rpc_server()
    flags = ["--ram", "1GiB", "-c", "256", "-t", "1", "--vram", f"{server.name}=8MiB", "--json"]
    flags += ["--placement", "fixed"]
    flags += ["--cache-dir", str(trunk_dir)]
    (planned,) = told("plan", path, *flags)["devices"]
    answer = told("run", path, *flags, "-p", "3 4 5", "-n", "4", "--temp", "0")
    (device,) = answer["devices"]
    assert device["name"] == planned["name"] == server.name
    assert device["slots"] == sum(planned["slots"])
    assert device["hits"] == answer["device_hits"] > 0


def told(*arguments: object) -> dict[str, Any]:
    """Return what a command prints as JSON."""
    command = [sys.executable, "-m", "haversack.edge", *map(str, arguments)]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found: dict[str, Any] = json.loads(printed)
    return found


def test_the_next_plan_tells_what_the_device_really_computed(
    path: Path, rpc_device: Device, options: edge.LoadOptions, tmp_path: Path
) -> None:
    options = replace(options, cache_dir=tmp_path, warm_start=True, speculate="off")
    vram = {rpc_device.name: 8 * MIB}
    with edge.load(path, "1GiB", 256, 1, options=options, vram=vram, placement="fixed") as model:
        assert model.generate(PROMPT, 100, temperature=0).text
        (use,), stats = model.devices(), model.stats()
    share = use.hits / (stats.hits + stats.misses)
    planned = edge.plan(path, "1GiB", 256, 1, vram=vram, placement="fixed")
    told = forecast_of(planned, known_facts(planned, tmp_path, measure=False))
    assert told is not None and told.on_devices == (share,)


# --------------------------------------------------------------------------- faults
def test_a_server_gone_before_the_load_is_one_line(
    path: Path, start_rpc_server: StartServer, options: edge.LoadOptions, modules_dir: Path
) -> None:
    server = start_rpc_server()
    planned = edge.plan(path, "1GiB", 256, 1, vram={server.name: 8 * MIB})
    server.kill()
    with pytest.raises(DeviceError) as caught:
        edge.load(planned, options=options)
    assert "\n" not in str(caught.value) and str(server.port) in str(caught.value)


def test_a_server_killed_in_use_ends_an_isolated_model_alone(
    path: Path,
    plain: list[int],
    start_rpc_server: StartServer,
    options: edge.LoadOptions,
) -> None:
    options = replace(options, placement="fixed")  # the device is in use from the first token on
    server = start_rpc_server()
    vram = {server.name: 8 * MIB}
    with edge.load_isolated(path, "1GiB", 256, 1, options=options, vram=vram) as model:
        assert written(model) == plain
        generation = model.generate(PROMPT, 200, temperature=0)
        next(generation)
        server.kill()
        with pytest.raises(AbortedError) as caught:
            list(generation)
        assert "\n" not in str(caught.value)
        assert f"uses {server.name}: if its server or driver failed" in str(caught.value)
    again = start_rpc_server()
    vram = {again.name: 8 * MIB}
    with edge.load_isolated(path, "1GiB", 256, 1, options=options, vram=vram) as model:
        assert written(model) == plain
