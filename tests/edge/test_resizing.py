"""Models that get more or less memory while they are open."""

import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from haversack import edge
from haversack.devices.errors import BudgetError, HaversackError
from haversack.devices.ledger import ledger
from haversack.edge.model_plan import Plan
from haversack.edge.planner import streamed
from haversack.tools.models.architectures import TinyShape

MIB = 2**20
TinyModel = Callable[..., Path]
SHAPE = TinyShape(num_hidden_layers=4, num_experts=16, num_experts_per_tok=4)
PROMPT = list(range(20))
PLAIN = edge.LoadOptions(warm_start=False, speculate="off")


@pytest.fixture
def planned(tiny_model: TinyModel) -> Plan:
    model = tiny_model(shape=SHAPE, expert_type="Q8_0")
    return streamed(edge.plan(model, ram="1GiB", ctx=256, threads=1), 1.0)


def ram_of(planned: Plan, share: float) -> int:
    """The budget that holds slots for a share of the experts, or as few as work, beside what the
    tests' own process has grown by since the plan."""
    grown_bytes = max(0, ledger.others_bytes() - planned.process_bytes) + MIB
    wanted_bytes = planned.planned_bytes - int((1 - share) * planned.slot_bytes)
    return max(planned.floor_bytes, wanted_bytes) + grown_bytes


@pytest.fixture
def text(planned: Plan) -> str:
    with edge.load(planned, options=PLAIN) as model:
        return "".join(model.generate(PROMPT, 100, temperature=0))


def slots_held_bytes(model: edge.Model) -> int:
    return next(entry.held_bytes for entry in model.budget() if entry.name == "slots")


def test_down_and_up_while_a_text_is_written(planned: Plan, text: str) -> None:
    with edge.load(planned, options=PLAIN) as model:
        generation = model.generate(PROMPT, 100, temperature=0)
        pieces = [next(generation)]
        for share in (0.3, 1.0, 0.0, 0.6):
            model.resize(ram_of(planned, share))
            pieces += [next(generation) for _ in range(10)]
            model.check_integrity()
            assert slots_held_bytes(model) <= model.plan.slot_bytes <= model.plan.ram_bytes
            assert sum(entry.reserved_bytes for entry in model.budget()) == model.plan.ram_bytes
            assert model.stats().ram_budget_bytes == model.plan.ram_bytes
        assert "".join([*pieces, *generation]) == text


def test_by_another_thread(planned: Plan, text: str) -> None:
    def sizes() -> Iterator[int]:
        while not done.is_set():
            yield from (ram_of(planned, share) for share in (0.0, 0.5, 1.0))

    def resize() -> None:
        for ram_bytes in sizes():
            model.resize(ram_bytes)

    done = threading.Event()
    with edge.load(planned, options=PLAIN) as model:
        thread = threading.Thread(target=resize)
        thread.start()
        try:
            for _ in range(3):
                assert "".join(model.generate(PROMPT, 100, temperature=0)) == text
        finally:
            done.set()
            thread.join()
        model.check_integrity()


def test_a_text_makes_room_between_its_tokens(planned: Plan) -> None:
    """Nobody waits until a text has ended."""
    begun, has_resized = threading.Event(), threading.Event()
    sizes = [ram_of(planned, share) for share in (0.0, 1.0)]
    num_tokens, resized_at = 800, list[int]()
    longer = streamed(edge.plan(planned.path, ram="1GiB", ctx=1024, threads=1))
    with edge.load(longer, options=PLAIN) as model:
        generation = model.generate(PROMPT, num_tokens, temperature=0)

        def write() -> None:
            for _ in generation:
                begun.set()
                if len(generation.tokens) == num_tokens // 2:
                    assert has_resized.wait(300)

        thread = threading.Thread(target=write)
        thread.start()
        begun.wait()
        while thread.is_alive():
            model.resize(sizes[len(resized_at) % 2] + 2**26)
            resized_at.append(len(generation.tokens))
            has_resized.set()
        thread.join()
    assert len(generation.tokens) == num_tokens
    assert any(number < num_tokens for number in resized_at)


def test_in_two_precisions(tiny_model: TinyModel, planned: Plan) -> None:
    low_from = tiny_model(shape=SHAPE, expert_type="Q2_K")
    options = edge.LoadOptions(warm_start=False, fidelity=edge.Fidelity("balanced", low_from))
    with edge.load(streamed(planned, 0.5), options=options) as model:
        for share in (0.3, 0.8, 0.5):
            assert model.generate(PROMPT, 20, temperature=0).tokens is not None
            model.resize(ram_of(planned, share))
            model.check_integrity()
            assert slots_held_bytes(model) <= model.plan.slot_bytes


def test_too_little_is_refused_and_nothing_changes(planned: Plan, text: str) -> None:
    with edge.load(planned, options=PLAIN) as model:
        with pytest.raises(BudgetError, match=r"needs at least .* while it is open"):
            model.resize("1MiB")
        assert model.plan == planned
        assert "".join(model.generate(PROMPT, 100, temperature=0)) == text


def test_a_shared_budget_stays_what_it_is(planned: Plan) -> None:
    limit_bytes = ram_of(planned, 0.7)
    budget = edge.Budget(limit_bytes)
    with edge.load(planned.path, ram=budget, ctx=256, threads=1, options=PLAIN) as model:
        before = model.plan
        model.resize(ram_of(planned, 0.4))
        freed_bytes = before.slot_bytes - model.plan.slot_bytes
        assert freed_bytes > 0 and budget.limit_bytes == limit_bytes
        with pytest.raises(BudgetError, match="other models leave"):
            model.resize(ram_of(planned, 1.5))
        model.resize(limit_bytes)
        assert model.plan.slot_bytes > before.slot_bytes - MIB


def test_what_streams_nothing_cannot_be_resized(planned: Plan) -> None:
    with edge.load(planned.path, ram="1GiB", ctx=256, threads=1) as model:
        with pytest.raises(HaversackError, match="no slots to resize: load it again"):
            model.resize("512MiB")
