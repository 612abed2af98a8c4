"""The benchmark of GPUs runs whole on a simulated one; what needs CUDA is found or told."""

import csv
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from haversack.edge.cache_dir import modules_folder
from haversack.edge.plain_llama import has_expert_cache
from haversack.quant.gguf import read_geometry
from haversack.tools.bench import gpu as bench_gpu
from haversack.tools.bench.gpu import GpuBench, GpuResult, gains
from haversack.tools.bench.gpu_plain import PlainJob, run_plain
from haversack.tools.models.architectures import TinyShape

MIB = 1024**2
SHAPE = TinyShape(num_experts=16, num_experts_per_tok=4)


@pytest.fixture(scope="module")
def path(tiny_model: Any) -> Path:
    found: Path = tiny_model("qwen3moe", shape=SHAPE)
    return found


@pytest.fixture(scope="module")
def trace(path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A routing of fewer layers than the model has, which is repeated."""
    rng = np.random.default_rng(5)
    events = [[step, layer, *rng.permutation(16)[:4]] for step in range(40) for layer in range(2)]
    made = tmp_path_factory.mktemp("traces") / "made.npz"
    np.savez(made, events=np.array(events, np.int32), n_expert=16, top_k=4)
    assert len(read_geometry(path).layers) > 2
    return made


def test_plain_llama_takes_more_of_the_gpu_with_more_layers_there(path: Path) -> None:
    least = PlainJob(
        model=str(path), gpu="vram=100MiB,link=100GB/s", is_simulated=True, ctx_tokens=64,
        threads=1, prompt_tokens=8, warm_tokens=1, tokens=4, num_cpu_layers=99,
    )  # fmt: skip
    used = [run_plain(replace(least, num_cpu_layers=count)).used_bytes for count in (99, 1, 0)]
    layer_bytes = SHAPE.num_experts * read_geometry(path).layers[0].expert_bytes
    assert used[2] - used[1] >= 0.9 * layer_bytes  # buffers for computing are smaller then
    assert used[1] - used[0] >= 0.9 * layer_bytes
    with pytest.raises(RuntimeError, match="cannot load"):
        run_plain(replace(least, gpu="vram=1MiB,link=100GB/s", num_cpu_layers=0))


@pytest.mark.slow
def test_it_measures_every_engine(
    path: Path, trace: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = tmp_path / "gpu.csv"
    command = [str(path), "--trace", str(trace), "--simulate-gpu", "vram=100MiB,link=100GB/s"]
    command += ["--prompt-tokens", "8", "--warm-tokens", "1", "--tokens", "4", "--threads", "1"]
    command += ["--vram", "9MiB", "--ram", "1GiB", "--placement", "fixed"]
    status = bench_gpu.main([*command, "--csv", str(table)])
    *lines, verdict = capsys.readouterr().out.splitlines()
    engines = [line.partition(" in ")[0] for line in lines]
    cached = ["llama.cpp, cache"] * has_expert_cache()
    ours = ["haversack, exact", "haversack, balanced"]
    assert engines == ["llama.cpp, static", "llama.cpp, static", *cached, *ours]
    assert "layers with experts on the CPU: 2" in lines[1]
    assert verdict.endswith("FAILS" if status else "holds")
    assert len(table.read_text().splitlines()) == 1 + len(lines)


@pytest.mark.slow
def test_a_server_is_a_gpu_too(
    path: Path,
    trace: Path,
    start_rpc_server: Any,
    modules_dir: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    modules_folder(None).parent.mkdir(parents=True)
    modules_folder(None).symlink_to(modules_dir)
    command = [str(path), "--trace", str(trace), "--device", start_rpc_server().name]
    command += ["--prompt-tokens", "8", "--warm-tokens", "1", "--tokens", "4", "--threads", "1"]
    command += ["--vram", "9MiB", "--ram", "1GiB", "--fidelity", "exact", "--placement", "fixed"]
    table = tmp_path / "gpu.csv"
    status = bench_gpu.main([*command, "--csv", str(table)])
    assert status in (0, 1)  # nothing is said of its speed
    with table.open(newline="") as file:
        engines = [row["engine"] for row in csv.DictReader(file)]
    assert engines == ["llama.cpp, static", "llama.cpp, static", "haversack, exact"]


def test_what_it_wrote_is_drawn(
    path: Path, trace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("matplotlib")
    found = [
        GpuResult("llama.cpp, static", 0, 0, 3, 1.0, 5.0),
        GpuResult("llama.cpp, static", 10, 8, 1, 1.0, 8.0),
        GpuResult("haversack, exact", 10, 9, -1, 1.0, 12.0),
    ]
    monkeypatch.setattr(GpuBench, "measure", lambda *_: iter(found))
    picture = tmp_path / "gpu.png"
    command = [str(path), "--trace", str(trace), "--simulate-gpu", "vram=100MiB,link=100GB/s"]
    assert bench_gpu.main([*command, "--fidelity", "exact", "--png", str(picture)]) == 0
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_gains_are_beside_the_static_placement_that_holds_not_all() -> None:
    def result(engine: str, vram_bytes: int, speed: float, num_cpu_layers: int = -1) -> GpuResult:
        return GpuResult(engine, vram_bytes, 0, num_cpu_layers, 1.0, speed)

    found = [
        result("llama.cpp, static", 0, 5.0, 3),
        result("llama.cpp, static", 10, 8.0, 1),
        result("haversack, exact", 10, 12.0),
        result("haversack, balanced", 10, 20.0),
        result("llama.cpp, static", 20, 30.0, 0),
        result("haversack, exact", 20, 29.0),
    ]
    assert gains(found) == {10: 1.5}


def test_a_gpu_that_is_not_there_is_one_line(
    path: Path, trace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = [str(path), "--trace", str(trace), "--device"]
    assert bench_gpu.main([*command, "Fast0"]) == 2
    assert "there is no device Fast0" in capsys.readouterr().err
    assert bench_gpu.main([*command, "CUDA0", "--simulate-gpu", "vram=1GiB"]) == 2
    assert "needs vram and link" in capsys.readouterr().err


def test_a_trace_is_read_before_a_back_end_is_made(
    path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = [str(path), "--trace", str(tmp_path / "none.npz"), "--device", "Fast0"]
    assert bench_gpu.main(command) == 2
    assert "cannot read the trace" in capsys.readouterr().err
