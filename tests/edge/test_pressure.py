"""A budget that follows the memory that other programs leave."""

import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from haversack import edge
from haversack.edge import pressure
from haversack.edge.planner import streamed
from haversack.edge.pressure import Pressure, wanted_bytes
from haversack.tools.models.architectures import TinyShape

TinyModel = Callable[..., Path]
MIB, GIB = 2**20, 2**30
SHAPE = TinyShape(num_hidden_layers=4, num_experts=64)


@pytest.mark.parametrize(
    ("spare", "wanted"),
    [
        (0, 4 * GIB),
        (-GIB, 3 * GIB),  # given back at once
        (2 * GIB, 5 * GIB),  # taken slowly
        (-MIB, 4 * GIB),  # too little to matter
        (-9 * GIB, GIB),
        (90 * GIB, 8 * GIB),
    ],
)
def test_what_a_model_should_have(spare: int, wanted: int) -> None:
    assert wanted_bytes(4 * GIB, spare, least_bytes=GIB, most_bytes=8 * GIB) == wanted


@pytest.fixture
def model(tiny_model: TinyModel) -> Iterator[edge.Model]:
    path = tiny_model(shape=SHAPE, expert_type="F32")
    planned = streamed(edge.plan(path, ram="auto", ctx=256, threads=1), 1.0)
    with edge.load(planned, options=edge.LoadOptions(warm_start=False)) as found:
        yield found


def test_memory_is_given_back_and_taken_again(model: edge.Model) -> None:
    text = "".join(model.generate([1, 2, 3], 30, temperature=0))
    whole_bytes, spare_bytes = model.plan.slot_bytes, 0
    follower = Pressure(model, available=lambda: spare_bytes, reserve_bytes=0)
    follower.look()
    assert model.plan.slot_bytes == whole_bytes
    spare_bytes = -(10**12)
    follower.look()
    least_bytes = model.plan.slot_bytes
    assert least_bytes < whole_bytes / 2
    assert "".join(model.generate([1, 2, 3], 30, temperature=0)) == text
    spare_bytes = 10**12
    follower.look()
    assert model.plan.slot_bytes > least_bytes
    assert "".join(model.generate([1, 2, 3], 30, temperature=0)) == text


def test_it_looks_by_itself_until_the_model_is_closed(
    tiny_model: TinyModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pressure, "INTERVAL_S", 0.01)
    planned = streamed(
        edge.plan(tiny_model(shape=SHAPE, expert_type="F32"), ram="auto", ctx=256, threads=1), 1.0
    )
    looked = threading.Event()

    def look(follower: Pressure) -> None:
        looked.set()

    monkeypatch.setattr(Pressure, "look", look)
    with edge.load(planned, options=edge.LoadOptions(warm_start=False)):
        assert looked.wait(60)
        (thread,) = [one for one in threading.enumerate() if one.name == "haversack pressure"]
    thread.join(60)
    assert not thread.is_alive()


def test_a_model_in_memory_has_nothing_to_give_back(tiny_model: TinyModel) -> None:
    with edge.load(tiny_model(shape=SHAPE), ram="auto", ctx=256, threads=1) as model:
        assert model.plan.mode == "resident"
        assert not [one for one in threading.enumerate() if one.name == "haversack pressure"]
