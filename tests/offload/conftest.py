"""Streamed models below the public API: an engine, its context, and the drive it reads from."""

import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from haversack.cache.precision import HIGH, LOW
from haversack.devices._native import address_of
from haversack.devices.llama import ContextShape, Row
from haversack.devices.memory import PAGE_BYTES
from haversack.devices.storage import Buffer, DirectFile
from haversack.offload import _native as native
from haversack.offload.engine import Engine, LoadHooks, open_streamed
from haversack.offload.expert_engine import ExpertEngine
from haversack.offload.pool import PoolPlan, plan_pools, pools_bytes
from haversack.offload.precision import Precision
from haversack.offload.tier import DeviceTier
from haversack.quant.gguf import ModelGeometry, read_geometry
from haversack.quant.trunk import ensure_trunk

Experts = dict[int, tuple[int, ...]]  # by layer
Logits = npt.NDArray[np.float32]


class Drive:
    """Sees all reads of a model. `on_read` is called before each, with the file's offset: it may
    wait, or raise the error of the read."""

    def __init__(self) -> None:
        self.on_read: Callable[[int], None] = lambda _: None
        self.num_reads = 0
        self._counting = threading.Lock()

    def read(self, offset: int) -> None:
        with self._counting:
            self.num_reads += 1
        self.on_read(offset)


class DrivenFile(DirectFile):
    """A file on `drive`."""

    drive: Drive

    def read_into(self, buffer: Buffer, offset: int, need_bytes: int) -> None:
        self.drive.read(offset)
        super().read_into(buffer, offset, need_bytes)


def device_tier(plans: Sequence[PoolPlan], device: Any, share: float, **how: Any) -> DeviceTier:
    """A tier on a device with slots for `share` of a model's experts, in each pool."""
    num_slots = tuple(int(share * len(p.layers) * p.num_experts) for p in plans)
    return DeviceTier(device.address, device.name, num_slots, **how)


class Opened:
    """A model with `share` of its experts in slots, at least as many as a token needs twice; with
    `tiers` more on devices, as `device_tier` is told. `how` are `LoadHooks`."""

    def __init__(
        self,
        path: Path,
        share: float,
        trunk_dir: Path,
        tiers: Sequence[dict[str, Any]] = (),
        **how: Any,
    ) -> None:
        self.geometry: ModelGeometry = read_geometry(path)
        self.drive = Drive()
        precision: Precision | None = how.get("precision")
        low = precision.low if precision is not None else None
        used, layers = self.geometry.num_experts_per_tok, self.geometry.layers
        all_bytes = pools_bytes(plan_pools(layers, used, 2 * self.geometry.expert_bytes))
        self.plans = plan_pools(layers, used, int(share * all_bytes), low)
        hooks: dict[str, Any] = {"warm_start": False, **how}
        self.tiers = tuple(device_tier(self.plans, **tier) for tier in tiers)
        self.engine: Engine = open_streamed(
            self.geometry,
            ensure_trunk(self.geometry, trunk_dir),
            ContextShape(ctx_tokens=256, batch_tokens=128, threads=1),
            lambda: self.plans,
            LoadHooks(
                open_file=self._open,
                num_readers=8,
                tiers=self.tiers,
                **hooks,
            ),
        )

    def _open(self, path: Path) -> DrivenFile:
        file = DrivenFile(path)
        file.drive = self.drive
        return file

    @property
    def experts(self) -> ExpertEngine:
        assert self.engine.experts is not None
        return self.engine.experts

    @property
    def bytes_read(self) -> int:
        return int(self.experts.readers.counts().bytes_read)

    def logits(self, tokens: Sequence[int], prefill: int) -> Logits:
        """Return the logits after the first `prefill` tokens, computed as a batch, and after each
        other token. The bookkeeping is checked after each pass."""
        context, rows = self.engine.context, list[Logits]()
        context.forget(0)
        for batch in [tokens[:prefill], *([token] for token in tokens[prefill:])]:
            context.decode(batch)
            rows.append(context.logits())
            self.experts.check_integrity()
        return np.stack(rows)

    def rows(self, tokens: Sequence[int]) -> Logits:
        """Return the logits after each of `tokens`, computed in one pass."""
        context = self.engine.context
        context.forget(0)
        context.compute([Row(token, place, 0, True) for place, token in enumerate(tokens)])
        return np.stack([context.logits(row) for row in range(len(tokens))])

    def is_read_of(self, offset: int, layer: int, expert: int) -> bool:
        """Whether a read of a matrix of that expert begins at `offset`."""
        (matrices,) = [each.matrices for each in self.geometry.layers if each.layer == layer]
        starts = [matrix.offset + expert * matrix.expert_bytes for matrix in matrices]
        return offset in [start - start % PAGE_BYTES for start in starts]

    def force(self, chosen: Experts, predicted: Experts | None = None) -> None:
        """From now on every row uses the same experts, by layer, and those `predicted` are
        prefetched. The dictionaries may be changed later."""

        def choose(layer: int, ids: npt.NDArray[np.int32], _: object) -> None:
            ids[:] = chosen[layer]

        def predict(layer: int) -> npt.NDArray[np.integer] | None:
            experts = (predicted or {}).get(layer)
            return None if experts is None else np.array(experts)

        self.engine.watch(choose, predict)

    def wait_until_idle(self) -> None:
        """Return when no read waits or is under way."""
        counts = self.experts.readers.counts
        while counts().num_ahead or counts().num_reading:
            threading.Event().wait(0.001)

    def stream_all(self) -> None:
        """From now on copy each expert of a batch to the device that may be copied there."""
        native.engine_tier_state(self.experts.address, 0).contents.streams_all = True

    def num_unpinned(self) -> int:
        """Return how many slots could be claimed now, after withdrawing all prefetches."""
        native.engine_withdraw(self.experts.address)
        pools = range(len(self.plans))
        for number, pool in enumerate(self.experts.pools):
            # While the system takes long to give memory, the engine uses only a part of its slots
            # (offload/native/growth.cpp). This gives it all of them. With low copies it has all.
            if not pool.plan.low_shape:
                native.engine_resize_pool(self.experts.address, number, pool.num_slots)
        self.experts.check_integrity()
        slots = [
            native.engine_slots(self.experts.address, number, level)
            for number in pools
            for level in (HIGH, LOW)
        ]
        return sum(native.slots_num_unpinned(each) for each in slots)

    def num_slots(self) -> int:
        pools = self.experts.pools
        return sum(pool.num_slots + (pool.low.num_slots if pool.low else 0) for pool in pools)

    def residents(self, slots: int) -> set[int]:
        """Return the keys of the experts in these READY slots of the engine's."""
        keys = np.empty(self.geometry.layers[0].num_experts * len(self.geometry.layers), np.int32)
        count = native.slots_residents(slots, address_of(keys), len(keys))
        return set(keys[:count].tolist())

    def on_host(self) -> set[int]:
        return self.residents(native.engine_slots(self.experts.address, 0, HIGH))

    def on_device(self) -> set[int]:
        return self.residents(native.engine_tier_slots(self.experts.address, 0, 0))

    def close(self) -> None:
        self.engine.close()


OpenModel = Callable[..., Opened]


@pytest.fixture
def open_model(trunk_dir: Path) -> Iterator[OpenModel]:
    """A function that opens the model at a path with slots for a share of its experts, 0 for as few
    as possible. What it opens is closed at the end."""
    opened: list[Opened] = []

    def give(path: Path, share: float = 0.0, **how: Any) -> Opened:
        opened.append(Opened(path, share, trunk_dir, **how))
        return opened[-1]

    yield give
    for model in reversed(opened):
        model.drive.on_read = lambda _: None
        model.close()
