"""Forecasts: how fast a plan will decode, before anything is loaded, and how sure that is.

A token takes the time to compute it, and of the time to read its missing experts the part that
computing does not hide. Laws say what no run has measured yet:

- The hit law (`edge.hits`) says in which memory a token finds its experts.
- Computing hides reads for `_HIDDEN` of the shorter of both. Beside the times of
  `tools/results/*_stream.csv` a token's time is 10 % wrong in the mean.
- A token computes with the trunk and its own experts, at the rate in bytes at which this computer
  computed other models; before the first run, at the rate at which it reads memory. To that each
  layer adds what it takes with next to no weights, `_LAYER_S`: most of a tiny model's time.
- In a layer, devices multiply with the experts that they hold while the CPU multiplies with the
  others, so a layer takes as long as the slowest. What a device takes was measured by itself.
- A batch of a prompt computes at the rate of the last run, and reads each expert that it uses and
  that lies in no memory once. Before any run nothing is said of prompts.

What the last run of the same model measured corrects them (see `edge.run_records`).
"""

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from haversack.devices.backends import list_devices
from haversack.devices.device_speed import known_device_speed, measure_device
from haversack.devices.errors import DeviceError, StorageError
from haversack.devices.memory_speed import memory_bytes_s
from haversack.devices.storage import known_speed, measure_disk
from haversack.edge.cache_dir import default_cache_dir
from haversack.edge.decoding import Decoding
from haversack.edge.hits import found_of
from haversack.edge.model_plan import STREAMED, Plan
from haversack.edge.run_records import LEAST_TOKENS, RunRecord, read_records, record_key

_HIDDEN = 0.46
_LAYER_S = 3e-5  # as `python -m haversack.tools.bench.layer_cost` measures it
_LEAST_SHARE = 0.5  # of a run's time that counts as that of its weights

MEASURED, LIKELY, ROUGH = "measured", "likely", "rough"
_ERRORS = {MEASURED: 0.15, LIKELY: 0.35, ROUGH: 1.5}  # of a token's time, either way


@dataclass(frozen=True)
class Forecast:
    """How fast tokens will be decoded, one after the other.

    `tok_s` is expected, most likely between `low_tok_s` and `high_tok_s`. A token takes
    `compute_s_per_token` and `wait_s_per_token`; it reads `bytes_read_per_token` from a drive that
    gives `drive_bytes_s` (0 where nothing is read). `hit_rate` is the share of uses of experts that
    some memory holds, `on_devices` that which each device holds. A prompt is computed at
    `prefill_tok_s`, 0 where nothing is known of prompts. `confidence` is "measured" (this model ran
    on this computer), "likely" (other models did) or "rough" (none did).
    """

    tok_s: float
    low_tok_s: float
    high_tok_s: float
    compute_s_per_token: float
    wait_s_per_token: float
    bytes_read_per_token: float
    drive_bytes_s: float
    hit_rate: float
    confidence: str
    prefill_tok_s: float = 0.0
    on_devices: tuple[float, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Return all figures as plain values."""
        return asdict(self)

    def __str__(self) -> str:
        return f"{shown(self.tok_s)} tok/s ({shown(self.low_tok_s)} to {shown(self.high_tok_s)})"


def shown(tok_s: float) -> str:
    """Return a speed with three digits, as people read it."""
    return f"{tok_s:.0f}" if tok_s >= 100 else f"{tok_s:.3g}"


@dataclass(frozen=True)
class DeviceCosts:
    """What computing takes on a device: `weights_bytes_s` is the rate at which it multiplies one
    row with experts, `call_s` the time of a call that multiplies with nearly nothing, its copies
    included."""

    weights_bytes_s: float
    call_s: float


@dataclass(frozen=True)
class Facts:
    """What is known of the computer and of a model's runs on it. Rates are bytes a second, 0 where
    nothing is known: `drive_bytes_s` of the drive under the model, `weights_bytes_s` of computing
    with other models' weights, `prompt_bytes_s` the same for each token of a prompt, and
    `memory_bytes_s` of reading memory. `devices` are known by name."""

    drive_bytes_s: float = 0.0
    weights_bytes_s: float = 0.0
    prompt_bytes_s: float = 0.0
    memory_bytes_s: float = 0.0
    record: RunRecord | None = None
    devices: Mapping[str, DeviceCosts] = field(default_factory=dict)


def forecast(planned: Plan, cache_dir: str | Path | None = None) -> Forecast | None:
    """Return how fast the plan will decode, from what is known of this computer and of the model's
    earlier runs; None where that is too little. What is not known is measured, in 2 seconds at
    most: the drive, which is then kept in the cache folder, and the memory."""
    folder = Path(cache_dir or default_cache_dir())
    return forecast_of(planned, known_facts(planned, folder, measure=True))


def known_facts(planned: Plan, cache_dir: Path, *, measure: bool) -> Facts:
    """Return what is known. With `measure`, what is not known is measured: the drive, once, in 1.5
    seconds, and the memory, in a tenth of a second."""
    records = read_records(cache_dir)
    threads = planned.shape.threads
    record = records.get(record_key(planned, cache_dir))
    others = [each for each in records.values() if each.threads == threads and not each.on_devices]
    weights_bytes_s = _median([each.weights_bytes_s for each in others])
    is_unknown = record is None and not weights_bytes_s
    return Facts(
        _drive_bytes_s(planned, cache_dir, measure),
        weights_bytes_s,
        _median([each.prompt_bytes_s for each in others if each.prompt_bytes_s]),
        memory_bytes_s(threads) if measure and is_unknown else 0.0,
        record,
        _device_costs(planned, cache_dir, measure),
    )


def _device_costs(planned: Plan, cache_dir: Path, measure: bool) -> dict[str, DeviceCosts]:
    """Return what is known of the plan's devices, by name."""
    names, costs = [each.name for each in planned.devices], dict[str, DeviceCosts]()
    for device in list_devices() if names else ():
        if device.name not in names:
            continue
        speed = known_device_speed(device, cache_dir)
        if speed is None and measure:
            with contextlib.suppress(StorageError, DeviceError):  # a full disk, or full memory
                speed = measure_device(device, cache_dir=cache_dir)
        if speed is not None:
            costs[device.name] = DeviceCosts(speed.weights_bytes_s, speed.call_s)
    return costs


def _median(rates: Sequence[float]) -> float:
    return sorted(rates)[len(rates) // 2] if rates else 0.0


def _drive_bytes_s(planned: Plan, cache_dir: Path, measure: bool) -> float:
    if planned.mode != STREAMED or not planned.path.is_file():
        return 0.0
    speed = known_speed(planned.path, cache_dir)
    if speed is None and measure:
        with contextlib.suppress(StorageError):  # too small a file, or a full disk
            speed = measure_disk(largest_part(planned), cache_dir=cache_dir)
    return 0.0 if speed is None else speed.bytes_s


def largest_part(planned: Plan) -> Path:
    """Return the largest of the model's files, the best one to measure its drive with."""
    return max(planned.geometry.paths, key=lambda path: path.stat().st_size)


def forecast_of(planned: Plan, facts: Facts) -> Forecast | None:
    """Return the forecast; None where too little is known for any."""
    compute_s, confidence = _compute_s(planned, facts)
    read_bytes, hit_rate = read_bytes_per_token(planned)
    if not compute_s or (read_bytes and not facts.drive_bytes_s):
        return None
    wait_s = 0.0
    if read_bytes:
        read_ratio, wait_ratio = 1.0, 1.0
        if facts.record is not None and facts.record.was_streamed:
            read_ratio, wait_ratio = facts.record.read_ratio, facts.record.wait_ratio
        hit_rate = max(0.0, 1 - read_ratio * (1 - hit_rate))
        read_bytes = min(read_ratio * read_bytes, used_bytes(planned))
        wait_s = wait_ratio * unhidden_s(compute_s, read_bytes / facts.drive_bytes_s)
    if confidence == MEASURED and read_bytes and not (facts.record and facts.record.was_streamed):
        confidence = LIKELY
    token_s, error = compute_s + wait_s, 1 + _ERRORS[confidence]
    tok_s = 1 / token_s
    drive_bytes_s = facts.drive_bytes_s if read_bytes else 0.0
    figures = (tok_s, tok_s / error, tok_s * error, compute_s, wait_s, read_bytes, drive_bytes_s)
    prompts = prefill_tok_s(planned, facts)
    return Forecast(*figures, hit_rate, confidence, prompts, _on_devices(planned, facts.record))


def record_of(
    planned: Plan, found: Decoding, facts: Facts, prompts: Decoding | None = None
) -> RunRecord | None:
    """Return what a run of the plan measured, decoding and in `prompts`, if it decoded enough to
    tell anything. `facts` are what was known when it began."""
    if found.tokens < LEAST_TOKENS or found.pass_s <= found.wait_s:
        return None
    compute_s, wait_s = (found.pass_s - found.wait_s) / found.tokens, found.wait_s / found.tokens
    weights_s = max(compute_s - fixed_s(planned), _LEAST_SHARE * compute_s)
    rate_bytes_s, threads = weights_bytes(planned) / weights_s, planned.shape.threads
    law_bytes, _ = read_bytes_per_token(planned)
    made = RunRecord(
        compute_s,
        rate_bytes_s,
        threads,
        planned.mode == STREAMED,
        prompt_bytes_s=_prompt_bytes_s(planned, prompts or Decoding()),
        on_devices=any(device.is_used for device in planned.devices),
    )
    if not law_bytes:
        return made
    read_bytes, wait_ratio = found.bytes_read / found.tokens, 1.0
    if facts.drive_bytes_s and read_bytes:
        wait_ratio = wait_s / unhidden_s(compute_s, read_bytes / facts.drive_bytes_s)
    return replace(made, read_ratio=read_bytes / law_bytes, wait_ratio=wait_ratio)


def _prompt_bytes_s(planned: Plan, prompts: Decoding) -> float:
    """Return the rate at which tokens of prompts were computed, 0 where too few were."""
    compute_s = prompts.pass_s - prompts.wait_s
    if prompts.tokens < LEAST_TOKENS or compute_s <= 0:
        return 0.0
    return prompts.tokens * weights_bytes(planned) / compute_s


def _compute_s(planned: Plan, facts: Facts) -> tuple[float, str]:
    """Return the seconds to compute a token, 0 if nothing is known, and how sure that is."""
    if facts.record is not None:
        return facts.record.compute_s, MEASURED
    if facts.weights_bytes_s:
        weights_s = _layers_s(planned, facts.weights_bytes_s, facts.devices)
        return fixed_s(planned) + weights_s, LIKELY
    if facts.memory_bytes_s:
        weights_s = _layers_s(planned, facts.memory_bytes_s, facts.devices)
        return fixed_s(planned) + weights_s, ROUGH
    return 0.0, ROUGH


def fixed_s(planned: Plan) -> float:
    """Return the seconds that a token takes beside its weights: in each layer operations begin, and
    threads wait for each other."""
    return _LAYER_S * len(planned.geometry.layers)


def _layers_s(planned: Plan, weights_bytes_s: float, devices: Mapping[str, DeviceCosts]) -> float:
    """Return the seconds to compute a token where the CPU multiplies at `weights_bytes_s`; a device
    that is not known counts as fast as the CPU."""
    if not any(device.is_used for device in planned.devices):
        return weights_bytes(planned) / weights_bytes_s
    total_s, used = planned.trunk_bytes / weights_bytes_s, planned.geometry.num_experts_per_tok
    known = [devices.get(each.name, DeviceCosts(weights_bytes_s, 0)) for each in planned.devices]
    for device, costs in zip(planned.devices, known, strict=True):
        total_s += device.trunk_bytes / costs.weights_bytes_s
    for pool in planned.pools:
        shares, layer_bytes = found_of(planned, pool).on_devices, used * sum(pool.shape)
        times = [(1 - sum(shares)) * layer_bytes / weights_bytes_s]
        for share, costs in zip(shares, known, strict=True):
            calls = 1 - (1 - share) ** used  # layers in which the device has an expert at all
            times.append(calls * costs.call_s + share * layer_bytes / costs.weights_bytes_s)
        total_s += len(pool.layers) * max(times)
    return total_s


def prefill_tok_s(planned: Plan, facts: Facts) -> float:
    """Return how fast the first batch of a prompt that fills it will be computed; 0 where nothing
    is known of prompts, or of the drive."""
    rate_bytes_s = (facts.record and facts.record.prompt_bytes_s) or facts.prompt_bytes_s
    batch_tokens, read_bytes = planned.shape.batch_tokens, _batch_read_bytes(planned)
    if not rate_bytes_s or (read_bytes and not facts.drive_bytes_s):
        return 0.0
    compute_s = batch_tokens * weights_bytes(planned) / rate_bytes_s
    wait_s = unhidden_s(compute_s, read_bytes / facts.drive_bytes_s) if read_bytes else 0.0
    return batch_tokens / (compute_s + wait_s)


def _batch_read_bytes(planned: Plan) -> float:
    """Return what a batch reads: the experts that its tokens use and that lie in no memory."""
    read_bytes, used = 0.0, planned.geometry.num_experts_per_tok
    for number, pool in enumerate(planned.pools):
        total = pool.num_experts * len(pool.layers)
        held = pool.num_slots + sum(device.slots[number] for device in planned.devices)
        share = 1 - (1 - used / pool.num_experts) ** planned.shape.batch_tokens
        read_bytes += share * max(0, total - held) * sum(pool.shape)
    return read_bytes


def _on_devices(planned: Plan, record: RunRecord | None) -> tuple[float, ...]:
    """Return the shares of uses that the devices will compute: those of the last run, in which the
    engine may have left a device alone, or else those that they will hold."""
    measured = record.device_shares if record is not None else dict[str, float]()
    layers = sum(len(pool.layers) for pool in planned.pools)
    shares = [(len(pool.layers), found_of(planned, pool).on_devices) for pool in planned.pools]
    held = (
        sum(count * found[index] for count, found in shares) / layers
        for index in range(len(planned.devices) if layers else 0)
    )
    named = zip(planned.devices, held, strict=False)  # none where there are no experts
    return tuple(measured.get(device.name, share) for device, share in named)


def unhidden_s(compute_s: float, read_s: float) -> float:
    """Return how long a token waits for `read_s` of reads."""
    return read_s - _HIDDEN * min(compute_s, read_s)


# ----------------------------------------------------------------------- bytes
def used_bytes(planned: Plan) -> int:
    """Return the bytes of the experts that a token uses."""
    used = planned.geometry.num_experts_per_tok
    return used * sum(
        matrix.expert_bytes for layer in planned.geometry.layers for matrix in layer.matrices
    )


def weights_bytes(planned: Plan) -> int:
    """Return the bytes of all weights that a token is computed with."""
    return planned.trunk_bytes + used_bytes(planned)


def read_bytes_per_token(planned: Plan) -> tuple[float, float]:
    """Return what the law says that a token reads, and the hit rate, where experts are
    streamed."""
    if planned.mode != STREAMED:
        return 0.0, 1.0
    used = planned.geometry.num_experts_per_tok
    misses = [len(pool.layers) * used * found_of(planned, pool).missing for pool in planned.pools]
    uses = used * sum(len(pool.layers) for pool in planned.pools)
    read_bytes = sum(
        count * sum(pool.shape) for count, pool in zip(misses, planned.pools, strict=True)
    )
    return read_bytes, 1 - sum(misses) / uses
