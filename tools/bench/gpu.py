"""What does a GPU that holds part of the experts bring, beside plain llama.cpp on the same GPU?

    python -m haversack.tools.bench.gpu MODEL --trace TRACE.npz [--device CUDA0] [--csv gpu.csv]

This is one command on a computer with a CUDA GPU: it makes the back end if it is not there, writes
MODEL (24 layers of Qwen3-30B-A3B's shape, 8.5 GB) if that does not exist, and low copies of its
experts. Then it measures a prompt and decoding, each engine in a process of its own:

- plain llama.cpp, all on the GPU but the experts (--cpu-moe);
- for each `--vram`, plain llama.cpp with the experts of as many layers on the GPU as fit there
  (--n-cpu-moe), its best static placement;
- the same memory as a cache of experts, where the build of llama.cpp has one;
- haversack in the same memory, exact and balanced.

The recorded routing is forced upon haversack and upon the cache of experts, whose speed depends on
it. A static placement takes the same time whatever is chosen, so nothing slows it. Exit code 1 says
that haversack, exact, is less than 1.3 times as fast at decoding as the static placement in some
memory that does not hold all experts. `--csv` writes all figures, `--png` draws them.

`--device` names another GPU, as Vulkan0 or RPC[host:port], and `--simulate-gpu` describes one that
is simulated (docs/gpu.md): for trying this program where there is no GPU.
"""

import argparse
import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from haversack import edge
from haversack.devices.backends import find_device
from haversack.devices.cores import usable_cores
from haversack.devices.errors import DeviceError
from haversack.devices.module_build import build_module
from haversack.devices.modules import RPC, backend_of, list_modules
from haversack.devices.rpc import endpoint_of
from haversack.devices.units import format_bytes, parse_bytes
from haversack.edge.cache_dir import modules_folder
from haversack.edge.child_program import child_command
from haversack.edge.placement import FREE, PLACEMENTS
from haversack.edge.plain_llama import has_expert_cache
from haversack.edge.replay import Trace
from haversack.edge.simulated_gpu import simulated_gpu
from haversack.quant.gguf import ModelGeometry, read_geometry
from haversack.tools.bench.gpu_plain import PlainFound, PlainJob, run_plain
from haversack.tools.bench.plot import draw_gpu
from haversack.tools.bench.stream import suited, write_model
from haversack.tools.command_line import positive, tool, traced_parser, verdict, write_rows

LEAST_GAIN = 1.3
FIDELITIES = ("exact", "balanced")
_STATIC, _CACHE, _OURS = "llama.cpp, static", "llama.cpp, cache", "haversack"
_ALL = 999  # layers


@dataclass(frozen=True)
class GpuResult:
    """What an engine did in `vram_bytes` of a GPU; 0: the least it needs. `used_bytes` is what it
    took there, as the GPU says (0: not known). The experts of `num_cpu_layers` layers were on the
    CPU (-1: they are not placed by layers)."""

    engine: str
    vram_bytes: int
    used_bytes: int
    num_cpu_layers: int
    prefill_tok_s: float
    decode_tok_s: float

    def __str__(self) -> str:
        room = format_bytes(self.vram_bytes) if self.vram_bytes else "the least"
        layers = f", layers with experts on the CPU: {self.num_cpu_layers}"
        took = f", took {format_bytes(self.used_bytes)}" if self.used_bytes else ""
        return (
            f"{self.engine} in {room}: {self.decode_tok_s:.2f} tok/s, prompt"
            f" {self.prefill_tok_s:.1f} tok/s{took}"
            f"{layers if self.num_cpu_layers >= 0 else ''}"
        )


class GpuBench:
    """Measures engines on one model and GPU. `job` is the work of plain llama.cpp with all experts
    on the CPU."""

    def __init__(self, job: PlainJob, trace: Path, options: Sequence[str]) -> None:
        """`options` are more words for `haversack bench`."""
        self._job, self._trace, self._options = job, trace, options
        self._geometry: ModelGeometry = read_geometry(Path(job.model))
        layers = self._geometry.layers
        self._layer_bytes = max(layer.expert_bytes * layer.num_experts for layer in layers)

    @property
    def _num_layers(self) -> int:
        return len(self._geometry.layers)

    def measure(self, vrams: Sequence[int], fidelities: Sequence[str]) -> Iterator[GpuResult]:
        """Yield a result for each engine and each number of bytes of the GPU's memory."""
        least = self._plain(_STATIC, 0, self._job, self._num_layers)
        yield least
        least_bytes = max(least.used_bytes, self._geometry.trunk_bytes)  # some GPUs do not tell
        for vram_bytes in vrams:
            yield self._best_static(vram_bytes, least_bytes)
            if has_expert_cache() and vram_bytes > least_bytes:
                cache_bytes = vram_bytes - least_bytes
                job = replace(self._job, cache_bytes=cache_bytes, trace=str(self._trace))
                try:
                    yield self._plain(_CACHE, vram_bytes, job, self._num_layers)
                except RuntimeError as error:
                    print(f"{_CACHE} in {format_bytes(vram_bytes)}: {error}", file=sys.stderr)
            for fidelity in fidelities:
                yield self._ours(vram_bytes, fidelity)

    def _best_static(self, vram_bytes: int, least_bytes: int) -> GpuResult:
        """Return the speed with the experts of as many layers on the GPU as it holds."""
        num_there = min(self._num_layers, max(0, vram_bytes - least_bytes) // self._layer_bytes)
        for num_cpu_layers in range(self._num_layers - num_there, self._num_layers):
            with suppress(RuntimeError):  # its buffers for computing may be larger
                job = replace(self._job, num_cpu_layers=num_cpu_layers)
                found = self._plain(_STATIC, vram_bytes, job, num_cpu_layers)
                if found.used_bytes <= vram_bytes:
                    return found
        return self._plain(_STATIC, vram_bytes, self._job, self._num_layers)

    def _plain(self, engine: str, vram_bytes: int, job: PlainJob, num_cpu_layers: int) -> GpuResult:
        found: PlainFound = run_plain(job)
        return GpuResult(
            engine,
            vram_bytes,
            found.used_bytes,
            -1 if job.cache_bytes else num_cpu_layers,
            job.prompt_tokens / found.prefill_s,
            1 / found.decode_s_per_token,
        )

    def _ours(self, vram_bytes: int, fidelity: str) -> GpuResult:
        job = self._job
        place = f"--vram={job.gpu}={vram_bytes}B"
        if job.is_simulated:
            place = f"--simulate-gpu={_with_memory(job.gpu, vram_bytes)}"
        found = _haversack(
            *("bench", job.model, place, f"--trace={self._trace}", f"--fidelity={fidelity}"),
            *(f"--threads={job.threads}", f"--ctx={job.ctx_tokens}", "--json"),
            *(f"--prompt-tokens={job.prompt_tokens}", f"--warm-tokens={job.warm_tokens}"),
            *(f"--tokens={job.tokens}", *self._options),
        )
        used_bytes = found.get("gpu_peak_bytes", 0)  # told by a GPU that is simulated
        speeds = found["prefill_tok_s"], found["decode_tok_s"]
        return GpuResult(f"{_OURS}, {fidelity}", vram_bytes, used_bytes, -1, *speeds)


def _with_memory(gpu: str, vram_bytes: int) -> str:
    """Return the text of a simulated GPU with so much memory."""
    return re.sub(r"vram=[^,]*", f"vram={vram_bytes}B", gpu)


def _haversack(*words: str) -> dict[str, Any]:
    """Return what a command prints as JSON. Raises RuntimeError if it fails."""
    command = [*child_command("haversack.edge"), *words]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        raise RuntimeError(f"haversack {words[0]} failed: {done.stderr.strip()[-500:]}")
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def gains(results: Sequence[GpuResult]) -> dict[int, float]:
    """Return how many times as fast as the static placement haversack, exact, is, by the bytes of
    the GPU's memory, where these do not hold all experts."""
    static = {
        each.vram_bytes: each.decode_tok_s
        for each in results
        if each.engine == _STATIC and each.num_cpu_layers > 0
    }
    return {
        each.vram_bytes: each.decode_tok_s / static[each.vram_bytes]
        for each in results
        if each.engine == f"{_OURS}, exact" and each.vram_bytes in static
    }


def have_backend(device: str) -> None:
    """Make the back end of a device unless it can be loaded. Raises DeviceError."""
    modules_dir = modules_folder(None)
    if endpoint_of(device) is not None:  # a server serves one process: those of the engines
        if RPC not in (module.backend for module in list_modules(modules_dir)):
            build_module(RPC, modules_dir)
        return
    try:
        find_device(device, modules_dir)
    except DeviceError:
        backend = backend_of(device)
        if backend is None:
            raise
        print(f"making the back end {backend}: this takes minutes", file=sys.stderr)
        build_module(backend, modules_dir)
        find_device(device, modules_dir)


def have_model(path: Path, trace: Trace, layers: int, fidelities: Sequence[str]) -> None:
    """Write the model unless it is there, and low copies of its experts if any are used."""
    if not path.exists():
        print(f"writing {path}", file=sys.stderr)
        write_model(path, trace, layers)
    if set(fidelities) != {"exact"}:
        print("making low copies", file=sys.stderr)
        edge.prepare(path)


@tool
def main(arguments: Sequence[str] | None) -> int:
    """Measure the GPU of the command line; the exit status."""
    given = _parser().parse_args(arguments)
    recorded = Trace.load(given.trace)
    vrams = [parse_bytes(size) for size in given.vram or ("2GiB", "4GiB", "8GiB")]
    if given.simulate_gpu is None:
        have_backend(given.device)
    else:
        simulated_gpu(given.simulate_gpu)
    fidelities = given.fidelity or FIDELITIES
    have_model(given.model, recorded, given.layers, fidelities)
    results = list[GpuResult]()
    with tempfile.TemporaryDirectory() as folder:
        trace = Path(folder) / "forced.npz"
        suited(recorded, read_geometry(given.model)).save(trace)
        bench = GpuBench(_job(given), trace, _options(given))
        for result in bench.measure(vrams, fidelities):
            print(result, flush=True)
            results.append(result)
    if given.csv:
        write_rows(given.csv, [asdict(result) for result in results])
    if given.png:
        draw_gpu([{k: str(v) for k, v in asdict(each).items()} for each in results], given.png)
    held = [
        verdict(f"{format_bytes(size)}: {gain:.2f} times the static placement", gain >= LEAST_GAIN)
        for size, gain in gains(results).items()
    ]
    return 0 if all(held) else 1


def _options(given: argparse.Namespace) -> list[str]:
    """Return what `haversack bench` is told of memory."""
    ram = [] if given.ram is None else [f"--ram={given.ram}"]
    return [*ram, f"--placement={given.placement}"]


def _job(given: argparse.Namespace) -> PlainJob:
    return PlainJob(
        model=str(given.model),
        gpu=given.simulate_gpu or given.device,
        is_simulated=given.simulate_gpu is not None,
        ctx_tokens=given.prompt_tokens + given.warm_tokens + given.tokens + 1,
        threads=given.threads or usable_cores(),
        prompt_tokens=given.prompt_tokens,
        warm_tokens=given.warm_tokens,
        tokens=given.tokens,
        num_cpu_layers=_ALL,
    )


def _parser() -> argparse.ArgumentParser:
    parser = traced_parser(__doc__)
    parser.add_argument("--layers", type=positive, default=24, help="of MODEL if it is written")
    parser.add_argument("--device", default="CUDA0")
    parser.add_argument("--simulate-gpu", help="in its place, as vram=16GiB,link=12GB/s")
    parser.add_argument("--vram", action="append", help="2GiB, 4GiB and 8GiB unless given")
    parser.add_argument("--ram", help="of haversack; what is free less 2 GiB unless given")
    parser.add_argument("--placement", default=FREE, choices=PLACEMENTS)
    parser.add_argument("--fidelity", action="append", choices=FIDELITIES)
    parser.add_argument("--threads", type=positive, help="all cores unless given")
    parser.add_argument("--prompt-tokens", type=positive, default=512)
    parser.add_argument("--warm-tokens", type=positive, default=128)
    parser.add_argument("--tokens", type=positive, default=128)
    parser.add_argument("--png", type=Path, help="draw them there")
    return parser


if __name__ == "__main__":
    sys.exit(main())
