"""What drafts come from is made smaller in steps until it fits."""

from pathlib import Path

import pytest

from haversack import edge
from haversack.devices.llama import ContextShape
from haversack.edge.draft_sizes import WHOLE, DraftSizes
from haversack.edge.drafter_plan import Drafting, plan_drafting
from haversack.edge.planner import with_drafts

TWIN = Path(__file__).parents[1] / "data" / "models" / "tales-twin.gguf"
SHAPE = ContextShape(2048, 512, 1)


def bytes_of(sizes: DraftSizes) -> int:
    """What drafting without a model takes in these sizes."""
    return sizes.ngram_bytes(SHAPE)


def test_each_step_takes_no_more_and_the_table_goes_before_the_text() -> None:
    steps = [WHOLE, *WHOLE.smaller(SHAPE)]
    taken = [bytes_of(each) for each in steps]
    assert taken == sorted(taken, reverse=True)
    assert steps[-1].tokens_of(SHAPE) == 256 and steps[-1].table_bytes == 64 << 10
    whole_texts = [each for each in steps if each.tokens_of(SHAPE) == 2048]
    assert min(each.table_bytes for each in whole_texts) == 64 << 10


def test_without_a_limit_nothing_is_made_smaller() -> None:
    assert plan_drafting(None, SHAPE, WHOLE) == Drafting(None, WHOLE)


@pytest.mark.parametrize("share", [1.0, 0.7, 0.5, 0.35, 0.25])
def test_what_needs_no_model_fits_in_a_share_of_its_memory(share: float) -> None:
    most_bytes = int(share * bytes_of(WHOLE))
    found = plan_drafting(None, SHAPE, WHOLE, most_bytes)
    assert 0.5 * most_bytes < found.num_bytes(SHAPE) <= most_bytes


def test_a_drafter_loses_its_window_and_pairs_before_the_table() -> None:
    whole = plan_drafting(TWIN, SHAPE, WHOLE)
    assert whole.drafter is not None
    fixed_bytes = whole.drafter.weights_bytes + whole.drafter.compute_bytes + bytes_of(WHOLE)
    found = plan_drafting(TWIN, SHAPE, WHOLE, fixed_bytes + (2 << 20))
    assert found.drafter is not None and found.drafter.shape.ctx_tokens == 128
    assert found.drafter.pair_bytes < whole.drafter.pair_bytes
    assert found.sizes.table_bytes == WHOLE.table_bytes
    assert found.num_bytes(SHAPE) <= fixed_bytes + (2 << 20)


@pytest.mark.parametrize(("drafter", "knob"), [(None, "off"), (TWIN, "auto")])
def test_too_little_is_refused_with_numbers(drafter: Path | None, knob: str) -> None:
    with pytest.raises(
        edge.BudgetError,
        match=rf"needs at least .* may take 50.0 KiB: raise --speculate-memory.*--speculate {knob}",
    ) as found:
        plan_drafting(drafter, SHAPE, WHOLE, 50 << 10)
    assert found.value.have_bytes == 50 << 10 < found.value.need_bytes


def test_the_plan_spends_no_more_and_a_model_drafts_in_it(trunk_dir: Path) -> None:
    most_bytes = 400 << 10
    options = edge.LoadOptions(cache_dir=trunk_dir, speculate_memory=most_bytes, warm_start=False)
    with edge.load(edge.builtin_model(), "1GiB", ctx=2048, threads=1, options=options) as model:
        planned = model.plan
        assert planned.draft_bytes <= most_bytes
        assert planned.draft_sizes.table_bytes == model._loop.speculation.memory.table.nbytes
        model.speculate("ngram")
        assert model.generate("red, green, red, green, red,", 16, temperature=0).text is not None
        assert model.stats().drafted > 0
    assert with_drafts(planned, None).draft_sizes == WHOLE


def test_a_size_that_is_none_is_refused() -> None:
    with pytest.raises(edge.UnitError):
        edge.LoadOptions(speculate_memory="much")


def test_a_size_for_what_drafts_nothing_is_refused() -> None:
    with pytest.raises(edge.PromptError, match="5MiB, but nothing is drafted with --speculate off"):
        edge.LoadOptions(speculate="off", speculate_memory="5MiB")
