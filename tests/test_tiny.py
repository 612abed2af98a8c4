"""The smallest whole run: a random model of 2 layers, with a cold cache, a warm one, and none."""

from pathlib import Path
from typing import Any

from haversack import edge
from haversack.edge.planner import streamed
from haversack.tools.models.architectures import TinyShape


def test_eight_tokens_are_the_same_with_any_cache(tiny_model: Any, tmp_path: Path) -> None:
    path = tiny_model("qwen3moe", shape=TinyShape(num_hidden_layers=2))
    everything = edge.plan(path, ram="1GiB", ctx=64, threads=1)
    options = edge.LoadOptions(cache_dir=tmp_path)

    with edge.load(everything) as model:
        expected = model.generate([1, 2, 3], max_tokens=8, temperature=0).text

    with edge.load(streamed(everything, share=0.5), options=options) as model:
        cold = model.generate([1, 2, 3], max_tokens=8, temperature=0)
        assert cold.text == expected and cold.stats and cold.stats.misses > 0
        warm = model.generate([1, 2, 3], max_tokens=8, temperature=0)
        assert warm.text == expected and warm.stats and warm.stats.hits > 0
        model.check_integrity()
