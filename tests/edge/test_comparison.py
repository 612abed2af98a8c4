"""Plain llama.cpp does the same work as we, in a process of its own."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from haversack import edge
from haversack.edge.bench import Work, measure, random_tokens
from haversack.edge.comparison import measure_plain
from haversack.edge.planner import streamed

TinyModel = Callable[..., Path]


@pytest.fixture
def forced(tmp_path: Path) -> Work:
    """A prompt of several batches and a routing that no router of the model would choose."""
    rng = np.random.default_rng(1)
    events = [[step, layer, *rng.permutation(8)[:2]] for step in range(9) for layer in range(3)]
    np.savez(tmp_path / "made.npz", events=np.array(events), n_expert=8)
    return Work(random_tokens(512, 60, seed=3), 40, 8, tmp_path / "made.npz")


def test_both_engines_compute_the_same(
    forced: Work, tiny_model: TinyModel, trunk_dir: Path
) -> None:
    planned = streamed(edge.plan(tiny_model(), ram="1GiB", ctx=64, threads=1, batch=16), 0.5)
    with edge.load(planned, options=edge.LoadOptions(cache_dir=trunk_dir)) as model:
        ours = measure(model, forced, drive_bytes_s=1e9)
    found = measure_plain(planned, forced).beside(ours)
    assert found["same_logits"] and found["compare"] == "llama.cpp"
    assert found["compare_forcing_s_per_token"] > 0
    assert found["compare_prefill_s"] * found["compare_prefill_tok_s"] == pytest.approx(40)
    per_token_s = ours.decode_s_per_token * found["decode_times_faster"]
    assert per_token_s == pytest.approx(found["compare_decode_s_per_token"])
    free = measure_plain(planned, replace(forced, trace=None))
    assert free.logits_sha256 != ours.logits_sha256 and free.forcing_s_per_token == 0


def test_a_failure_of_the_other_process_is_one_error(
    forced: Work, tiny_model: TinyModel, tmp_path: Path
) -> None:
    planned = edge.plan(tiny_model(), ram="1GiB", ctx=64)
    (tmp_path / "no.gguf").write_text("Once upon a time")
    spoilt = replace(planned, path=tmp_path / "no.gguf")
    with pytest.raises(edge.HaversackError, match=r"exit code 1 \(.*cannot load .*no.gguf"):
        measure_plain(spoilt, replace(forced, trace=None))
