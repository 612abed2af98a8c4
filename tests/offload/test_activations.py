"""What experts are multiplied with, seen while a model runs.

Axis letters: K elements of a row, M rows of a matrix, T tokens, N experts each token uses.
"""

import numpy as np
import pytest

from haversack import edge
from haversack.quant.experts import expert_rows
from haversack.quant.gguf import read_geometry


def budget(*, streamed: bool) -> int:
    """Return a budget in which the built-in model's experts are streamed, or not."""
    planned = edge.plan(edge.builtin_model(), "4GiB", 64)
    return (planned.floor_bytes + planned.full_bytes) // 2 if streamed else planned.ram_bytes


@pytest.mark.parametrize("streamed", [True, False])
def test_the_last_products_input_follows_from_the_first_ones(streamed: bool) -> None:
    """down's input is silu(gate x) * (up x), so all three were seen at the right moment."""
    geometry = read_geometry(edge.builtin_model())
    gate, up, down = geometry.layers[5].matrices
    seen: dict[str, tuple[np.ndarray, np.ndarray]] = {}
    with edge.load(edge.builtin_model(), budget(streamed=streamed), ctx=64) as model:
        assert model.plan.mode == ("streamed" if streamed else "resident")
        watch = model.watch_activations(
            lambda name, ids, x: seen.__setitem__(name, (ids.copy(), x.copy()))
        )
        tokens = model.tokenize("Once upon a time there was a fox who lived in the forest.")
        model.logits(tokens, len(tokens))
        assert watch.error is None
    ids, x = seen[gate.name]  # (T, N), (T, K)
    assert ids.shape == (len(tokens), 4)
    np.testing.assert_array_equal(x, seen[up.name][1])
    down_ids, hidden = seen[down.name]  # (T * N, 1), (T * N, M)
    np.testing.assert_array_equal(down_ids, ids.reshape(-1, 1))
    for token, place in ((0, 0), (3, 1), (len(tokens) - 1, 3)):
        expert = int(ids[token, place])
        gated = expert_rows(geometry, gate, expert) @ x[token]
        expected = gated / (1 + np.exp(-gated)) * (expert_rows(geometry, up, expert) @ x[token])
        found = hidden[token * 4 + place]
        assert np.linalg.norm(found - expected) < 0.03 * np.linalg.norm(expected)


def test_an_error_of_the_watcher_is_kept_and_the_pass_goes_on() -> None:
    def fail(*_: object) -> None:
        raise ValueError("no")

    with edge.load(edge.builtin_model(), budget(streamed=True), ctx=64) as model:
        tokens = model.tokenize("Once upon a time there was a fox.")
        expected = model.logits(tokens, len(tokens))
        watch = model.watch_activations(fail)
        assert (model.logits(tokens, len(tokens)) == expected).all()
        assert isinstance(watch.error, ValueError)
        model.watch_routing(None)
        assert (model.logits(tokens, len(tokens)) == expected).all()
