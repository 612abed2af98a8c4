"""What `--vram` may say, and what it means on a computer."""

from typing import Any

import pytest

from haversack.devices.backends import Device
from haversack.devices.errors import BudgetError, DeviceError, PromptError, UnitError
from haversack.edge import vram
from haversack.edge.vram import (
    VramAsk,
    asked_vram,
    auto_bytes,
    device_budgets,
    rounds_otherwise,
)

GIB = 2**30


@pytest.mark.parametrize(
    ("given", "asked"),
    [
        (None, []),
        ("6GiB", [(None, 6 * GIB)]),
        (1000, [(None, 1000)]),
        ("auto", [(None, None)]),
        ("CUDA0=auto", [("CUDA0", None)]),
        (["CUDA0=6GiB", "RPC[127.0.0.1:50052]=1GiB"],
         [("CUDA0", 6 * GIB), ("RPC[127.0.0.1:50052]", GIB)]),
        ({"Vulkan0": "2GiB", "Vulkan1": 4096}, [("Vulkan0", 2 * GIB), ("Vulkan1", 4096)]),
    ],
)  # fmt: skip
def test_sizes_with_and_without_a_device(given: Any, asked: list[tuple[str, int]]) -> None:
    assert asked_vram(given) == tuple(VramAsk(*each) for each in asked)


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        (["CUDA0=1GiB", "CUDA0=2GiB"], PromptError, "names CUDA0 twice"),
        (["1GiB", "2GiB"], PromptError, "names a size without a device twice"),
        (["1GiB", "CUDA0=2GiB"], PromptError, "give each as NAME=SIZE"),
        ("=1GiB", PromptError, "no device before the ="),
        ("CUDA0=6", UnitError, '"6" has no unit'),
        ("six", UnitError, "is not a size"),
        (-1, UnitError, "is not a size"),
        (1.5, UnitError, "is not a size"),
        (0, UnitError, "vram is 0: give a size above zero"),
        ({"CUDA0": 0}, UnitError, "vram is 0: give a size above zero"),
        ({5: "1MiB"}, PromptError, 'vram names the device 5: give a name, as in {"CUDA0": "6GiB"}'),
    ],
)
def test_what_is_no_size_is_refused(given: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        asked_vram(given)


def test_auto_leaves_a_gib_or_half() -> None:
    assert [auto_bytes(n * GIB) for n in (0, 1, 2, 8)] == [0, GIB // 2, GIB, 7 * GIB]


def test_auto_without_a_gpu_says_so(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(vram, "list_devices", list)
    assert device_budgets(asked_vram("auto")) == ()
    assert "only RAM is used" in caplog.text
    with pytest.raises(PromptError, match="no backend finds one"):
        device_budgets(asked_vram("1GiB"))


def test_several_gpus_are_named_in_an_order(monkeypatch: pytest.MonkeyPatch) -> None:
    gpus = [Device(name, "", "GPU", 0) for name in ("CUDA0", "CUDA1")]
    monkeypatch.setattr(vram, "list_devices", lambda: gpus)
    with pytest.raises(PromptError, match=r"one of CUDA0, CUDA1: name it, .* CUDA0=1.0GiB"):
        device_budgets(asked_vram("1GiB"))


def test_a_device_that_is_not_there_names_those_that_are() -> None:
    with pytest.raises(DeviceError, match=r"no device Warp7.* one of .*CPU"):
        device_budgets(asked_vram("Warp7=1GiB"))


def test_the_cpu_is_no_device_for_experts() -> None:
    with pytest.raises(PromptError, match="whose memory --ram bounds"):
        device_budgets(asked_vram("CPU=1GiB"))


@pytest.mark.usefixtures("rpc_device")  # the backend is there
def test_a_server_that_does_not_answer_is_one_line() -> None:
    with pytest.raises(DeviceError, match=r"127\.0\.0\.1:1\b") as caught:
        device_budgets(asked_vram("RPC[127.0.0.1:1]=1GiB"))
    assert "\n" not in str(caught.value)


def test_a_server_is_a_device_with_a_budget(rpc_device: Device) -> None:
    (found,) = device_budgets(asked_vram(f"{rpc_device.name}=64MiB"))
    assert (found.device.name, found.limit_bytes) == (rpc_device.name, 64 * 2**20)
    assert not rounds_otherwise(found.device)


def test_more_than_a_device_has_is_refused_with_numbers(rpc_device: Device) -> None:
    free_bytes, total_bytes = rpc_device.memory()
    with pytest.raises(BudgetError, match=r"has .* free of .*: lower --vram") as caught:
        device_budgets(asked_vram({rpc_device.name: 2 * total_bytes}))
    assert caught.value.need_bytes == 2 * total_bytes
    assert caught.value.have_bytes <= total_bytes and free_bytes <= total_bytes


def test_a_gpu_rounds_otherwise() -> None:
    gpus = [Device(name, "", "GPU", 0) for name in ("CUDA0", "Vulkan1", "Simulated0")]
    assert [rounds_otherwise(device) for device in gpus] == [True, True, False]
