"""`haversack bench` as people call it: beside a simulated GPU the bits stay."""

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from haversack.edge.cli import app
from haversack.tools.models.architectures import TinyShape

pytestmark = pytest.mark.usefixtures("loggers")  # a command writes its log to stderr from then on

ASKED = ("-p", "16", "-n", "4", "--warm-tokens", "1", "--ctx", "64", "--ram", "1GiB", "--json")


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
    beside = bench(path, "--simulate-gpu", "vram=9MiB,link=12GB/s")
    assert beside["gpu"] == "9.0 MiB behind 12 GB/s"
    assert 0 < beside["gpu_peak_bytes"] <= 9 * 1024**2
    assert beside["gpu_num_graphs"] > 0
    assert beside["gpu_used_bytes"] == beside["gpu_num_streams"] == 0  # all is closed
    alone = bench(path)
    assert "gpu" not in alone
    assert alone["logits_sha256"] == beside["logits_sha256"]


def test_one_that_only_has_a_clock_computes_nothing(path: Path) -> None:
    beside = bench(path, "--simulate-gpu", "vram=9MiB,link=12GB/s,memory=300GB/s")
    assert beside["gpu_num_graphs"] > 0
    assert beside["logits_sha256"] != bench(path)["logits_sha256"]
