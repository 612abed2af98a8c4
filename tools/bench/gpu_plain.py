"""Plain llama.cpp on a GPU at a benchmark's work, in a process of its own: what it takes of the GPU
is then all that is taken, and goes with it. `python -m haversack.tools.bench.gpu_plain` is that
process (see `tools/bench/gpu.py`)."""

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from haversack.devices.backends import Device, find_device
from haversack.edge.bench import random_tokens
from haversack.edge.cache_dir import modules_folder
from haversack.edge.child_program import child_command
from haversack.edge.plain_llama import PlainLlama, PlainPlacement
from haversack.edge.replay import Replay, Trace
from haversack.edge.simulated_gpu import simulated_gpu
from haversack.quant.gguf import read_geometry

_VOCABULARY_IN_USE = 256  # random tokens are drawn from the first ones, which every model has


@dataclass(frozen=True)
class PlainJob:
    """Work for plain llama.cpp. `gpu` names a device, or describes one that `is_simulated`. The
    experts of the first `num_cpu_layers` layers are on the CPU, and `cache_bytes` of the GPU's
    memory hold copies of them. `trace` is the file of a routing to force."""

    model: str
    gpu: str
    is_simulated: bool
    ctx_tokens: int
    threads: int
    prompt_tokens: int
    warm_tokens: int
    tokens: int
    num_cpu_layers: int
    cache_bytes: int = 0
    trace: str | None = None


@dataclass(frozen=True)
class PlainFound:
    """What the work took, and how much of the GPU's memory (0 where the GPU does not tell). The
    seconds of forcing a routing are left out; that the GPU waits for it is not."""

    prefill_s: float
    decode_s_per_token: float
    used_bytes: int


def run_plain(job: PlainJob) -> PlainFound:
    """Have a process do the work. Raises RuntimeError if it fails, as where memory is short."""
    command = child_command("haversack.tools.bench.gpu_plain")
    text = json.dumps(asdict(job))
    done = subprocess.run(command, input=text, capture_output=True, text=True)
    if done.returncode != 0:
        lines = done.stderr.splitlines() or [f"exit code {done.returncode}"]
        raise RuntimeError(f"plain llama.cpp failed: {lines[-1]}")
    return PlainFound(**json.loads(done.stdout))


@contextmanager
def opened_gpu(gpu: str, is_simulated: bool) -> Iterator[Device]:
    """Yield the device of that name, or one that is simulated as the text says. Raises
    DeviceError."""
    modules_dir = modules_folder(None)
    if not is_simulated:
        yield find_device(gpu, modules_dir)
        return
    with simulated_gpu(gpu).open() as made:
        yield find_device(made.name, modules_dir)


def _do(job: PlainJob) -> PlainFound:
    path, replay = Path(job.model), None
    if job.trace is not None:
        replay = Replay(Trace.load(Path(job.trace)), read_geometry(path))
    count = job.prompt_tokens + job.warm_tokens + job.tokens
    tokens = random_tokens(_VOCABULARY_IN_USE, count, seed=0)
    singles = [[token] for token in tokens[job.prompt_tokens :]]
    with opened_gpu(job.gpu, job.is_simulated) as device:
        placement = PlainPlacement(device.address, job.num_cpu_layers, job.cache_bytes)
        free_bytes = device.memory().free_bytes
        with PlainLlama(
            path, job.ctx_tokens, job.threads, job.prompt_tokens, replay, placement
        ) as plain:
            used_bytes = free_bytes - device.memory().free_bytes
            prefill_s, _ = plain.timed([tokens[: job.prompt_tokens]])
            plain.timed(singles[: job.warm_tokens])
            decode_s, _ = plain.timed(singles[job.warm_tokens :])
    return PlainFound(prefill_s, decode_s / job.tokens, used_bytes)


def main() -> int:
    """Do the work described on stdin; the exit status."""
    print(json.dumps(asdict(_do(PlainJob(**json.load(sys.stdin))))))
    return 0


if __name__ == "__main__":
    sys.exit(main())
