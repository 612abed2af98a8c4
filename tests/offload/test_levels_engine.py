"""Models streamed in two precisions: which copies are used, that they are used rightly, and that
nothing else changes."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from haversack.cache.precision import LOW, Thresholds
from haversack.devices.errors import StorageError
from haversack.offload.precision import Precision
from haversack.quant.gguf import read_geometry
from haversack.quant.lowbit import LowCopies, find_low, low_from_gguf
from haversack.quant.nested import Splitter
from haversack.quant.records import Record, RecordFile, low_path, read_records
from haversack.quant.requantize import Requantizer
from haversack.tools.models.architectures import ARCHITECTURES, TinyShape

SHAPE = TinyShape(num_experts=16, num_experts_per_tok=4)
TOKENS = np.random.default_rng(0).integers(0, SHAPE.vocab_size, 60).tolist()
PREFILL = 20
EXACT = Thresholds(1, 1)
BOTH = Thresholds(0.4, 0.7)  # of nearly equal weights: two HIGH, one LOW, one skipped

TinyModel = Callable[..., Path]


@pytest.fixture
def pair(tiny_model: TinyModel) -> tuple[Path, Path]:
    """A model and a smaller one whose experts are low copies of its own."""
    return tiny_model(shape=SHAPE, expert_type="Q8_0"), tiny_model(shape=SHAPE, expert_type="Q2_K")


def precision(pair: tuple[Path, Path], rule: Thresholds, low_share: float = 0.0) -> Precision:
    return Precision(low_from_gguf(read_geometry(pair[0]), pair[1]), rule, low_share)


@pytest.mark.parametrize("share", [0.0, 0.3])
def test_exact_thresholds_give_the_bits_of_a_model_without_low_copies(
    share: float, pair: tuple[Path, Path], open_model: Any
) -> None:
    exact = open_model(pair[0], share).logits(TOKENS, PREFILL)
    model = open_model(pair[0], share, precision=precision(pair, EXACT))
    np.testing.assert_array_equal(model.logits(TOKENS, PREFILL), exact)
    counts = model.experts.level_counts()
    assert counts.low == counts.skipped == counts.saved_bytes == 0 < counts.high


def test_low_copies_have_the_bits_of_their_own_file(tiny_model: TinyModel, open_model: Any) -> None:
    """A batch is LOW as a whole, with other experts than those that lie in HIGH slots. In the last
    layer, which computes one row, both files have the same experts."""
    high = tiny_model(shape=SHAPE, expert_type="Q8_0")
    low = tiny_model(shape=SHAPE, expert_type=("Q2_K", "Q2_K", "Q8_0"))
    everything_low = precision((high, low), EXACT, low_share=1.0)
    model, plain = open_model(high, precision=everything_low), open_model(low)
    layers = range(len(model.geometry.layers))
    for first in (0, 4, 8, 4):
        logits = []
        for each in (model, plain):
            each.force({layer: tuple(range(first, first + 4)) for layer in layers})
            logits.append(each.logits(TOKENS, len(TOKENS)))
        used = model.experts.level_counts()
        if first > 0:  # at first HIGH slots were unused
            np.testing.assert_array_equal(*logits)
    assert used.low == 3 * 4 * (len(layers) - 1) and used.high > 0 == used.skipped


@pytest.mark.parametrize("share", [0.0, 0.25, 1.0])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_architecture(
    architecture: str, share: float, tiny_model: TinyModel, open_model: Any
) -> None:
    """All show the weights of their experts. Llama 4 uses one expert, which nothing ranks above."""
    types = ("Q8_0", "Q2_K")
    pair = tuple(tiny_model(architecture, shape=SHAPE, expert_type=each) for each in types)
    model = open_model(pair[0], share, precision=precision((pair[0], pair[1]), BOTH, 0.3))
    logits = model.logits(TOKENS, PREFILL)
    assert np.isfinite(logits).all()
    counts = model.experts.level_counts()
    assert counts.high + counts.low + counts.skipped == model.experts.hits + model.experts.misses
    if share < 1:
        assert counts.skipped > 0 and counts.low > 0 and counts.saved_bytes > 0
    assert model.num_unpinned() == model.num_slots()


def test_fewer_bytes_are_read(pair: tuple[Path, Path], open_model: Any) -> None:
    exact, low = open_model(pair[0], 0.3), open_model(pair[0], 0.3, precision=precision(pair, BOTH))
    for model in (exact, low):
        model.experts.predict_by_routers(False)
        model.logits(TOKENS, PREFILL)
    assert low.bytes_read < 0.7 * exact.bytes_read


def of_itself(path: Path) -> LowCopies:
    """Low copies that are the originals, from the same bytes."""
    layers = read_geometry(path).layers
    copies = [
        [replace(matrix.copies[0], level=LOW) for matrix in layer.matrices] for layer in layers
    ]
    return LowCopies("the model itself", (), tuple(tuple(of_layer) for of_layer in copies))


@pytest.mark.parametrize("low_share", [0.1, 0.4, 1.0])
def test_waves_have_the_bits_of_exact_where_low_copies_do(
    low_share: float, pair: tuple[Path, Path], open_model: Any
) -> None:
    """A batch uses all 16 experts of a layer, and there are HIGH slots for half of them."""
    exact = open_model(pair[0]).logits(TOKENS, len(TOKENS))
    model = open_model(pair[0], precision=Precision(of_itself(pair[0]), EXACT, low_share))
    for _ in range(2):
        np.testing.assert_array_equal(model.logits(TOKENS, len(TOKENS)), exact)
    assert model.experts.level_counts().low > 0
    assert model.num_unpinned() == model.num_slots()


def test_waves_read_the_experts_of_fewest_rows_low(
    pair: tuple[Path, Path], open_model: Any
) -> None:
    """As many as there are LOW slots."""
    exact = open_model(pair[0])
    model = open_model(pair[0], precision=precision(pair, EXACT, 0.3))
    exact.logits(TOKENS, len(TOKENS))
    model.logits(TOKENS, len(TOKENS))
    counts, (pool,) = model.experts.level_counts(), model.experts.pools
    layers = model.geometry.layers
    assert 0 < counts.low <= pool.low.num_slots * len(layers)
    assert counts.saved_bytes > 0.9 * (exact.bytes_read - model.bytes_read) > 0


def test_both_levels_stay_within_the_bytes_of_the_plan(
    pair: tuple[Path, Path], open_model: Any
) -> None:
    """Rows that want most experts LOW move bytes to that level, sooner or later: how soon depends
    on which reads end first."""
    model = open_model(pair[0], 0.5, precision=precision(pair, Thresholds(0.05, 1)))
    (pool,), (plan,) = model.experts.pools, model.plans
    sizes = set[tuple[int, int]]()
    for seed in range(100):
        tokens = np.random.default_rng(seed).integers(0, SHAPE.vocab_size, 60).tolist()
        model.logits(tokens, PREFILL)
        sizes.add((pool.num_slots, pool.low.num_slots))
        assert pool.resident_bytes <= plan.num_bytes
        levels = plan.level_bytes.slot
        assert pool.num_slots * levels[0] + pool.low.num_slots * levels[1] <= plan.num_bytes
        if len(sizes) > 2:
            return
    pytest.fail(f"the levels keep their slots: {sizes}")


def test_thresholds_are_fitted_to_the_first_rows(pair: tuple[Path, Path], open_model: Any) -> None:
    samples = list[np.ndarray]()

    def fitted(weights: np.ndarray) -> Thresholds:
        samples.append(weights)
        return BOTH

    low = low_from_gguf(read_geometry(pair[0]), pair[1])
    model = open_model(pair[0], precision=Precision(low, EXACT, fitted=fitted))
    while not samples:
        assert model.experts.level_counts().low == 0
        model.logits(TOKENS, PREFILL)
    model.logits(TOKENS, PREFILL)
    assert model.experts.level_counts().low > 0 and len(samples) == 1
    assert samples[0].shape[1] == 4 and (samples[0] > 0).all()
    np.testing.assert_allclose(samples[0].sum(1), samples[0].sum(1)[0], rtol=1e-5)


def test_a_fault_ends_its_call_and_the_next_one_goes_on(
    pair: tuple[Path, Path], open_model: Any
) -> None:
    model = open_model(pair[0], precision=precision(pair, BOTH))

    def fail(_: int) -> None:
        raise StorageError("the drive fails")

    model.logits(TOKENS[:30], PREFILL)
    model.drive.on_read = fail
    with pytest.raises(StorageError):
        model.logits(TOKENS[30:], 8)
    assert model.num_unpinned() == model.num_slots()
    model.drive.on_read = lambda _: None
    assert np.isfinite(model.logits(TOKENS, PREFILL)).all()


def test_slots_of_both_levels_grow_and_shrink_between_passes(
    pair: tuple[Path, Path], open_model: Any
) -> None:
    model = open_model(pair[0], 0.3, precision=precision(pair, BOTH))
    (pool,), num_slots = model.experts.pools, model.plans[0].num_slots
    for wanted in (num_slots, num_slots // 2 + 4, 2 * num_slots, num_slots):
        model.experts.resize(0, wanted)
        assert np.isfinite(model.logits(TOKENS, PREFILL)).all()
        slot_bytes = model.plans[0].level_bytes.slot
        assert pool.resident_bytes <= wanted * slot_bytes[0]


# --------------------------------------------------------------- prepared copies
def prepared(path: Path, folder: Path, maker: Requantizer | Splitter) -> LowCopies:
    geometry = read_geometry(path)
    folder.mkdir()
    with RecordFile(low_path(geometry, folder), maker.layout()) as file:
        for layer_idx, layer in enumerate(geometry.layers):
            for expert in range(layer.num_experts):
                for slice_idx, blocks in enumerate(maker.slices(layer_idx, expert)):
                    file.write(Record(slice_idx, layer_idx, expert), blocks)
    low = find_low(geometry, folder)
    assert low is not None
    return low


@pytest.mark.parametrize("nested", [False, True])
def test_prepared_copies_are_whole(
    nested: bool, pair: tuple[Path, Path], tmp_path: Path, open_model: Any
) -> None:
    geometry = read_geometry(pair[0])
    maker = Splitter(geometry) if nested else Requantizer(geometry, "q2_k", None)
    low = prepared(pair[0], tmp_path / "low", maker)
    model = open_model(pair[0], 0.25, precision=Precision(low, BOTH, 0.3))
    assert np.isfinite(model.logits(TOKENS, PREFILL)).all()
    assert model.experts.level_counts().low > 0
    assert read_records(low.paths[0])[1].all()  # none was given up


def forced(model: Any, first: int) -> None:
    layers = range(len(model.geometry.layers))
    model.force({layer: tuple(range(first, first + 4)) for layer in layers})


def in_low_slots(path: Path, low: LowCopies, open_model: Any) -> Any:
    """A model that has used experts of each layer as low copies, and has no HIGH slot unused."""
    model = open_model(path, 0.5, precision=Precision(low, Thresholds(0.4, 1)))
    model.experts.predict_by_routers(False)
    for first in (0, 4, 12, 8):
        forced(model, first)
        model.logits(TOKENS[:2], 1)
    assert model.experts.level_counts().low > 0
    return model


def test_an_idle_drive_upgrades_nested_copies_by_their_rests(
    pair: tuple[Path, Path], tmp_path: Path, open_model: Any
) -> None:
    """The upgraded copies are the originals: logits are exact again."""
    geometry = read_geometry(pair[0])
    low = prepared(pair[0], tmp_path / "low", Splitter(geometry))
    model, exact = in_low_slots(pair[0], low, open_model), open_model(pair[0])
    forced(exact, 8)
    offsets = list[int]()
    model.drive.on_read = offsets.append
    for _ in range(20):
        used_low = model.experts.level_counts().low
        model.logits(TOKENS[:30], 1)
        model.wait_until_idle()
        if model.experts.level_counts().low == used_low:
            break
    exact_logits = exact.logits(TOKENS[:30], 1)
    np.testing.assert_array_equal(model.logits(TOKENS[:30], 1), exact_logits)
    upgraded = model.experts.level_counts().upgraded
    rests = {
        rest.place(expert)
        for layer in low.rests or ()
        for rest in layer
        if rest is not None
        for expert in range(SHAPE.num_experts)
    }
    assert upgraded > 0 and len(rests & set(offsets)) >= 2  # a matrix may be the original already


def test_a_damaged_rest_is_given_up_and_the_original_is_read(
    pair: tuple[Path, Path], tmp_path: Path, open_model: Any
) -> None:
    low = prepared(pair[0], tmp_path / "low", Splitter(read_geometry(pair[0])))
    with low.paths[0].open("r+b") as file:
        for layer in low.rests or ():
            for expert in range(SHAPE.num_experts):
                assert layer[1] is not None
                file.seek(layer[1].place(expert) + 5)
                file.write(b"?!")
    model, exact = in_low_slots(pair[0], low, open_model), open_model(pair[0])
    forced(exact, 8)
    for _ in range(20):
        model.logits(TOKENS[:30], 1)
        model.wait_until_idle()
    exact_logits = exact.logits(TOKENS[:30], 1)
    np.testing.assert_array_equal(model.logits(TOKENS[:30], 1), exact_logits)
    (bases, rests) = read_records(low.paths[0])[1]
    assert bases.all() and not rests.all()


@pytest.mark.parametrize("share", [pytest.param(0.0, id="waves"), 0.25])
def test_damaged_copies_are_told_in_one_line_and_the_models_own_are_read(
    share: float,
    pair: tuple[Path, Path],
    tmp_path: Path,
    open_model: Any,
    caplog: pytest.LogCaptureFixture,
) -> None:
    low = prepared(pair[0], tmp_path / "low", Requantizer(read_geometry(pair[0]), "q2_k", None))
    with low.paths[0].open("r+b") as file:
        for copies in low.copies:
            for expert in range(SHAPE.num_experts):
                file.seek(copies[1].place(expert) + 5)
                file.write(b"?!")
    model = open_model(pair[0], share, precision=Precision(low, Thresholds(0.4, 1), 0.3))
    logits = model.logits(TOKENS, PREFILL)
    np.testing.assert_array_equal(logits, open_model(pair[0]).logits(TOKENS, PREFILL))
    assert model.experts.level_counts().low == 0
    _, digests = read_records(low.paths[0])
    num_damaged = np.count_nonzero(digests == 0)
    assert num_damaged > 1
    model.close()
    (told,) = [each.getMessage() for each in caplog.records if each.name == "haversack.low"]
    assert told.startswith(f"{low.paths[0]}: {num_damaged} experts have a damaged low copy")
