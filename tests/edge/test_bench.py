"""A measurement counts what it says, and the same each time."""

from collections.abc import Callable
from pathlib import Path

from haversack import edge
from haversack.edge.bench import measure, random_tokens

TinyModel = Callable[..., Path]


def test_random_tokens_repeat_and_lie_in_the_vocabulary() -> None:
    tokens = random_tokens(10, 500, seed=4)
    assert tokens == random_tokens(10, 500, seed=4) != random_tokens(10, 500, seed=5)
    assert set(tokens) == set(range(10))


def test_a_measurement_counts_decoded_tokens_alone(tiny_model: TinyModel, trunk_dir: Path) -> None:
    full = edge.plan(tiny_model(), "1GiB", ctx=64)
    ram = (full.floor_bytes + full.full_bytes) // 2
    options = edge.LoadOptions(cache_dir=trunk_dir)
    with edge.load(tiny_model(), ram, ctx=64, options=options) as model:
        tokens = random_tokens(model.vocab_size, 40, seed=0)
        first, again = measure(model, tokens, 30), measure(model, tokens, 30)
        layers, used = len(model.plan.geometry.layers), model.plan.geometry.num_experts_per_tok
    for result in (first, again):
        assert (result.mode, result.prompt_tokens, result.decode_tokens) == ("streamed", 30, 10)
        assert result.hits + result.misses == 10 * layers * used
        assert result.bytes_read_per_token > 0
        assert result.decode_s_per_token * 10 == result.decode_s > 0
    assert first.to_dict().keys() == again.to_dict().keys()
