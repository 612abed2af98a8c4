"""Recall by layer and depth: counted again from the router inputs and choices of a whole run."""

import csv
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from haversack import edge
from haversack.devices.ggml import GgufHeader, GraphNode
from haversack.edge.planner import streamed
from haversack.offload.routing import router_input
from haversack.tools.models.architectures import TinyShape
from haversack.tools.routing.measures import prediction_recall
from haversack.tools.routing.recall import DEPTHS, EXTRAS, Recall, main

SHAPE = TinyShape(num_hidden_layers=5, num_experts=16)


def routers_of(path: Path) -> list[npt.NDArray[np.float32]]:
    """Every layer's router (E, C), from the file."""
    with GgufHeader(path) as header:
        found = {t.name: t for t in header.tensors if t.name.endswith("ffn_gate_inp.weight")}
    size = SHAPE.num_experts, SHAPE.hidden_size
    return [
        np.memmap(path, np.float32, "r", found[f"blk.{i}.ffn_gate_inp.weight"].offset, size)
        for i in range(SHAPE.num_hidden_layers)
    ]


def test_it_is_what_a_whole_run_says(tiny_model: Any, trunk_dir: Path) -> None:
    path = tiny_model("qwen3moe", shape=SHAPE)
    layers = range(SHAPE.num_hidden_layers)
    recall = Recall(layers)
    inputs: list[list[Any]] = [[] for _ in layers]
    choices: list[list[Any]] = [[] for _ in layers]

    def watch(layer: int, ids: npt.NDArray[np.int32], choice: GraphNode) -> None:
        recall(layer, ids, choice)
        found = router_input(choice)
        assert found is not None
        inputs[layer].append(found.array(np.float32)[0, 0].copy())
        choices[layer].append(ids[0].copy())

    planned = streamed(edge.plan(path, ram="1TiB", ctx=64, threads=1), 0.0)
    with edge.load(planned, options=edge.LoadOptions(cache_dir=trunk_dir)) as model:
        model.watch_routing(watch)
        model.logits(range(1, 31), prefill=10)
    routers = routers_of(path)
    for layer in layers:
        for depth in DEPTHS:
            if layer + depth not in layers:
                assert recall.num_chosen[layer, depth - 1] == 0
                continue
            later = layer + depth
            for index, extra in enumerate(EXTRAS):
                expected = prediction_recall(
                    np.array(inputs[layer][1:]), routers[later], np.array(choices[later][1:]), extra
                )
                cell = layer, depth - 1
                assert recall.num_chosen[cell] == 20 * SHAPE.num_experts_per_tok
                assert recall.num_predicted[(*cell, index)] / recall.num_chosen[cell] == expected
    table = recall.rows()
    assert [row["layer"] for row in table] == ["0", "1", "2", "3", "all"]
    assert (table[2]["2 ahead +2"] != "", table[3]["2 ahead +2"]) == (True, "")
    assert 0 < float(table[-1]["1 ahead"]) < float(table[-1]["1 ahead +2"]) < 100


def test_the_program_prints_and_writes_the_table(
    tiny_model: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "recall.csv"
    model = str(tiny_model("qwen3moe", shape=SHAPE))
    assert main([model, "--ram", "1TiB", "-p", "1 2 3", "-n", "6", "--csv", str(out)]) == 0
    printed = [line.strip("|").split("|") for line in capsys.readouterr().out.splitlines()]
    with out.open(newline="") as file:
        written = list(csv.reader(file))
    assert [[cell.strip() for cell in row] for row in printed[:1] + printed[2:]] == written
    assert len(written) == 1 + SHAPE.num_hidden_layers


def test_too_few_tokens_are_one_line(tiny_model: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tiny_model()), "--ram", "1TiB", "-p", "1 2 3", "-n", "1"]) == 2
    assert "raise -n" in capsys.readouterr().err
