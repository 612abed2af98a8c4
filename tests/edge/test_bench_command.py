"""`haversack bench` as people call it: beside a simulated GPU the bits stay."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from haversack.devices.errors import PromptError
from haversack.edge.cli import app
from haversack.quant.gguf import read_geometry
from haversack.tools.models.architectures import TinyShape

pytestmark = pytest.mark.usefixtures("loggers")  # a command writes its log to stderr from then on

ASKED = ("-p", "16", "-n", "4", "--warm-tokens", "1", "--ctx", "64", "--ram", "1GiB", "--json")
FIXED = ("--placement", "fixed")  # else few tokens may end before the first copy


@pytest.fixture(scope="module")
def path(tiny_model: Any) -> Path:
    found: Path = tiny_model("qwen3moe", shape=TinyShape(num_experts=16, num_experts_per_tok=4))
    return found


def bench(path: Path, *words: str) -> dict[str, Any]:
    done = CliRunner().invoke(app, ["bench", str(path), *ASKED, *words], catch_exceptions=False)
    assert done.exit_code == 0
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_a_simulated_gpu_computes_the_bits_of_the_cpu(path: Path) -> None:
    beside = bench(path, "--simulate-gpu", "vram=9MiB,link=12GB/s", *FIXED)
    assert beside["gpu"] == "9.0 MiB behind 12 GB/s"
    assert 0 < beside["gpu_peak_bytes"] <= 9 * 1024**2
    assert beside["gpu_num_graphs"] > 0
    assert beside["gpu_used_bytes"] == beside["gpu_num_streams"] == 0  # all is closed
    alone = bench(path)
    assert "gpu" not in alone
    assert alone["logits_sha256"] == beside["logits_sha256"]


def test_one_that_only_has_a_clock_computes_nothing(path: Path, tmp_path: Path) -> None:
    gpu = "vram=9MiB,link=12GB/s,memory=300GB/s"
    with pytest.raises(PromptError, match=r"routers would choose by zeros: give --trace FILE"):
        bench(path, "--simulate-gpu", gpu)
    trace, num_layers = tmp_path / "made.npz", len(read_geometry(path).layers)
    events = [
        [step, layer, *range(step, step + 4)] for step in (0, 4) for layer in range(num_layers)
    ]
    np.savez(trace, events=np.array(events, np.int32), n_expert=16, top_k=4)
    beside = bench(path, "--trace", str(trace), "--simulate-gpu", gpu, *FIXED)
    assert beside["gpu_num_graphs"] > 0
    assert beside["logits_sha256"] != bench(path)["logits_sha256"]
