"""A plan adds up to the byte, and its floor is the least that works."""

import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from haversack import edge
from haversack.devices.grammar import trie_bytes
from haversack.devices.llama_model import LlamaModel
from haversack.devices.sampler import chain_bytes
from haversack.edge.loading import builtin_model
from haversack.edge.planner import streamed
from haversack.tools.models.architectures import TinyShape

MIB = 1024 * 1024


def assert_adds_up(plan: edge.Plan) -> None:
    parts = ("trunk_bytes", "kv_bytes", "compute_bytes", "reserve_bytes", "slot_bytes")
    assert sum(getattr(plan, part) for part in parts) == plan.planned_bytes
    assert plan.planned_bytes + plan.headroom_bytes == plan.ram_bytes
    assert plan.planned_bytes <= plan.ram_bytes
    plan.budget().check_integrity()


@pytest.mark.parametrize("extra_bytes", [0, 1, 1000, MIB, 10 * MIB, 1024 * MIB])
def test_every_figure_is_part_of_the_budget(extra_bytes: int, tiny_model: Any) -> None:
    path = tiny_model("qwen3moe")
    floor_bytes = edge.plan(path, ram="4GiB").floor_bytes
    plan = edge.plan(path, ram=floor_bytes + extra_bytes)
    assert_adds_up(plan)
    if plan.mode == "streamed":
        assert plan.slot_bytes == sum(pool.num_bytes for pool in plan.pools)


def test_the_mode_follows_from_the_budget(tiny_model: Any) -> None:
    path = tiny_model("qwen3moe")
    rich = edge.plan(path, ram="4GiB")
    assert rich.mode == "resident" and not rich.pools
    assert edge.plan(path, ram=rich.full_bytes).mode == "resident"
    assert edge.plan(path, ram=rich.full_bytes - 1).mode == "streamed"


def test_below_the_floor_says_need_have_and_knob(tiny_model: Any) -> None:
    path = tiny_model("qwen3moe")
    floor_bytes = edge.plan(path, ram="4GiB").floor_bytes
    with pytest.raises(edge.BudgetError, match=r"needs at least .* raise --ram") as caught:
        edge.plan(path, ram=floor_bytes - 1)
    assert (caught.value.need_bytes, caught.value.have_bytes) == (floor_bytes, floor_bytes - 1)
    assert caught.value.exit_code == 3


def test_the_floor_works(tiny_model: Any, trunk_dir: Path) -> None:
    path = tiny_model("qwen3moe", shape=TinyShape(num_hidden_layers=8))
    floor = edge.plan(path, ram=edge.plan(path, ram="4GiB").floor_bytes)
    assert floor.mode == "streamed"
    assert [pool.num_slots for pool in floor.pools] == [2 * 2]  # two experts a token, twice
    with edge.load(floor, options=edge.LoadOptions(cache_dir=trunk_dir)) as model:
        assert len(model.generate([1, 2, 3], max_tokens=4).text.split()) == 4
        assert model.stats().ram_peak_bytes <= floor.ram_bytes


def test_a_plan_overtaken_by_the_process_is_refused(tiny_model: Any, trunk_dir: Path) -> None:
    path = tiny_model("qwen3moe", shape=TinyShape(num_hidden_layers=8))
    plan = streamed(edge.plan(path, ram="4GiB"), share=0.0)
    too_small = replace(plan, ram_bytes=plan.kv_bytes + plan.compute_bytes)
    with pytest.raises(edge.BudgetError, match=r"the process holds .* raise --ram"):
        edge.load(too_small, options=edge.LoadOptions(cache_dir=trunk_dir))


def test_a_plan_for_another_file_is_refused(tiny_model: Any, tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(tiny_model("qwen3moe").read_bytes())
    plan = streamed(edge.plan(path, ram="4GiB"), share=0.5)
    path.write_bytes(tiny_model("deepseek2").read_bytes())
    with pytest.raises(edge.ModelFileError, match=r"has changed since it was planned: plan again"):
        edge.load(plan, options=edge.LoadOptions(cache_dir=tmp_path))


def test_a_longer_context_costs_more(tiny_model: Any) -> None:
    path = tiny_model("qwen3moe")
    short, long = (edge.plan(path, ram="4GiB", ctx=ctx) for ctx in (256, 2048))
    assert long.kv_bytes > 7 * short.kv_bytes
    assert long.floor_bytes > short.floor_bytes


def test_json_holds_what_the_plan_holds(tiny_model: Any) -> None:
    path = tiny_model("deepseek2")
    plan = edge.plan(path, ram=edge.plan(path, ram="4GiB").full_bytes - 1)
    shown = json.loads(json.dumps(plan.to_dict()))
    assert shown["mode"] == "streamed" and shown["architecture"] == "deepseek2"
    assert shown["planned_bytes"] + shown["headroom_bytes"] == shown["ram_bytes"]
    assert sum(pool["slots"] * pool["slot_bytes"] for pool in shown["pools"]) == plan.slot_bytes
    assert path.name in str(plan) and "least --ram" in str(plan)


@pytest.mark.parametrize("ram", ["6", "6 bananas", "-1GiB", ""])
def test_a_size_needs_a_unit(ram: str, tiny_model: Any) -> None:
    with pytest.raises(edge.UnitError):
        edge.plan(tiny_model("qwen3moe"), ram=ram)


@pytest.mark.parametrize("value", [0, -1, 4_294_967_300])
@pytest.mark.parametrize("knob", ["ctx", "threads", "batch"])
def test_counts_have_bounds(knob: str, value: int, tiny_model: Any) -> None:
    given: dict[str, Any] = {knob: value}
    with pytest.raises(edge.PromptError, match=rf"{knob} is {value}: give a whole number"):
        edge.plan(tiny_model("qwen3moe"), ram="1GiB", **given)


def test_without_a_budget_the_machine_decides(tiny_model: Any) -> None:
    assert edge.plan(tiny_model("qwen3moe")).mode == "resident"


def test_a_boundless_context_is_refused_before_it_takes_memory(tiny_model: Any) -> None:
    with pytest.raises(edge.BudgetError, match=r"2000000000 tokens needs .* lower --ctx"):
        edge.plan(tiny_model("qwen3moe"), ram="1GiB", ctx=2_000_000_000)


def test_cells_and_threads_are_in_the_plan(tiny_model: Any) -> None:
    path = tiny_model("deepseek2")
    short, long = (edge.plan(path, ram="64GiB", ctx=ctx, batch=16) for ctx in (1024, 513 * 1024))
    assert (long.kv_bytes - short.kv_bytes) / (512 * 1024) > 52
    few, many = (edge.plan(path, ram="64GiB", threads=threads) for threads in (1, 101))
    assert many.compute_bytes - few.compute_bytes >= 100 * 1024 * 1024


def test_two_threads_plan_the_same(tiny_model: Any) -> None:
    """Each hears llama.cpp's words about its own model only."""
    path = tiny_model("qwen3moe")
    expected = edge.plan(path, ram="1GiB").kv_bytes

    def figures(_: int) -> int:
        return edge.plan(path, ram="1GiB").kv_bytes

    with ThreadPoolExecutor(4) as pool:
        assert set(pool.map(figures, range(40))) == {expected}


def test_what_choosing_tokens_takes_is_planned(tiny_model: Any) -> None:
    small, large = (
        edge.plan(tiny_model(shape=TinyShape(vocab_size=size)), ram="1GiB", ctx=64).compute_bytes
        for size in (512, 65_536)
    )
    assert large - small >= chain_bytes(65_536 - 512) > 2 * MIB


def test_a_grammar_is_planned_because_one_may_be_asked_for_at_any_time() -> None:
    model = LlamaModel(builtin_model(), dry=True)
    vocabulary = model.vocabulary
    text_bytes = sum(len(vocabulary.piece(token)) for token in range(vocabulary.num_tokens))
    taken = trie_bytes(vocabulary.num_tokens, text_bytes) + chain_bytes(vocabulary.num_tokens)
    model.close()
    assert edge.plan(builtin_model(), ram="1GiB", ctx=64).compute_bytes > 0.9 * taken > MIB // 2
