"""The expert store: brings a layer's experts into slots and says when they may be multiplied."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from haversack.cache.policies import Slots
from haversack.cache.slots import NOWHERE
from haversack.devices.interrupts import StopFlag
from haversack.offload.pool import ExpertPool, PoolPlan, resting_place
from haversack.offload.streamer import Read, Streamer
from haversack.quant.gguf import ExpertLayer, ModelGeometry

Experts = npt.NDArray[np.integer]
_GROUP_EXPERTS = 16  # missing experts are multiplied in groups of so many, as they arrive


class Group(NamedTuple):
    """Experts whose matrix is in memory now, and where: `addresses[i]` is `experts[i]`'s."""

    experts: Experts
    addresses: list[int]


@dataclass
class Lease:
    """A layer's experts, all in slots and pinned there; some may still be on their way.

    `missing` are the positions in `experts` that were read for this lease, `reads[m][i]` the
    read of matrix m of the i-th of them.
    """

    layer: ExpertLayer
    experts: Experts
    slots: Slots
    missing: npt.NDArray[np.intp]
    reads: list[list[Read]] = field(default_factory=list)


class ExpertStore:
    """All slots of a model and the reads into them. One thread uses it: the one that decodes."""

    def __init__(
        self, geometry: ModelGeometry, plans: Sequence[PoolPlan], streamer: Streamer, stop: StopFlag
    ) -> None:
        self._streamer, self._stop = streamer, stop
        self.pools = [ExpertPool(plan) for plan in plans]
        self._pool_of = {layer: pool for pool in self.pools for layer in pool.plan.layers}
        self._layers = {layer.layer: layer for layer in geometry.layers}
        self.hits = 0
        self.misses = 0

    def pool(self, layer: int) -> ExpertPool:
        """The pool in which the experts of `layer` lie."""
        return self._pool_of[layer]

    def fits(self, layer: int, num_experts: int) -> bool:
        """Whether so many experts of `layer` can be leased at once."""
        return num_experts <= self._pool_of[layer].plan.num_slots

    def lease(self, layer: int, experts: Experts) -> Lease:
        """Pin `experts` (distinct) into slots and start to read those that have none."""
        pool = self._pool_of[layer]
        slots = pool.table.find(layer, experts)
        missing = np.flatnonzero(slots == NOWHERE)
        self.hits += len(experts) - len(missing)
        self.misses += len(missing)
        held = slots[slots != NOWHERE]
        assert pool.table.are_ready(held), "an expert that is not wholly there was taken for there"
        pool.table.pin(held)
        pool.table.touch(held)
        lease = Lease(self._layers[layer], experts, slots, missing)
        if len(missing):
            slots[missing] = pool.table.claim(layer, experts[missing])
            lease.reads = self._read_all(lease)
        return lease

    def _read_all(self, lease: Lease) -> list[list[Read]]:
        """Every missing expert's first matrix before any one's second: products go in order."""
        pool = self._pool_of[lease.layer.layer]
        wanted = [(int(lease.experts[i]), int(lease.slots[i])) for i in lease.missing]
        return [
            [self._streamer.read(matrix, e, (pool, index, slot)) for e, slot in wanted]
            for index, matrix in enumerate(lease.layer.matrices)
        ]

    def wait(self, lease: Lease, index: int) -> None:
        """Return when matrix `index` of all leased experts is in its slot.

        Raises StorageError or CancelledError; then nothing of the lease may be multiplied.
        """
        if lease.reads:
            self._streamer.wait(lease.reads[index], self._stop)

    def groups(self, lease: Lease, index: int) -> Iterator[Group]:
        """The leased experts in groups, each as soon as matrix `index` is there: hits first."""
        hits = np.setdiff1d(np.arange(len(lease.experts)), lease.missing, assume_unique=True)
        if len(hits):
            yield self._group(lease, index, hits)
        for start in range(0, len(lease.missing), _GROUP_EXPERTS):
            chosen = slice(start, start + _GROUP_EXPERTS)
            self._streamer.wait(lease.reads[index][chosen], self._stop)
            yield self._group(lease, index, lease.missing[chosen])

    def _group(self, lease: Lease, index: int, chosen: npt.NDArray[np.intp]) -> Group:
        addresses = self._addresses(lease.layer, index, lease.slots[chosen])
        return Group(lease.experts[chosen], addresses)

    def _addresses(self, layer: ExpertLayer, index: int, slots: Slots) -> list[int]:
        pool, rest = self._pool_of[layer.layer], resting_place(layer.matrices[index])
        return [pool.address(index, slot) + rest for slot in slots.tolist()]

    def release(self, lease: Lease) -> None:
        """Unpin the experts: those whose matrices all came stay, the others lose their slot."""
        table = self._pool_of[lease.layer.layer].table
        if len(lease.missing):
            came = [Streamer.settle(reads) for reads in lease.reads]
            whole = np.array(came, bool).all(axis=0)
            slots = lease.slots[lease.missing]
            table.fill(slots[whole])
            table.drop(slots[~whole])
        table.unpin(lease.slots)

    def waves(self, layer: int, experts: Experts, index: int) -> Iterator[Group]:
        """More experts than slots, one matrix of each: in groups that stay until the next.

        Residents first, then waves of half the slots: one is read while the other is multiplied.
        Each matrix is read at most once. Close the generator, also after an error.
        """
        pool = self._pool_of[layer]
        slots = pool.table.find(layer, experts)
        resident = np.flatnonzero(slots != NOWHERE)
        if len(resident):
            assert pool.table.are_ready(slots[resident]), "a resident expert is not wholly there"
            pool.table.pin(slots[resident])
            try:
                addresses = self._addresses(self._layers[layer], index, slots[resident])
                yield Group(experts[resident], addresses)
            finally:
                pool.table.unpin(slots[resident])
        yield from self._borrowed_waves(layer, np.delete(experts, resident), index)

    def _borrowed_waves(self, layer: int, experts: Experts, index: int) -> Iterator[Group]:
        pool, matrix = self._pool_of[layer], self._layers[layer].matrices[index]
        size = max(1, min(len(experts), pool.table.num_unpinned // 2))
        waves = [experts[start : start + size] for start in range(0, len(experts), size)]
        borrowed = [pool.table.borrow(size) for _ in waves[:2]]
        reads: list[list[Read]] = []

        def start(number: int) -> None:
            slots = borrowed[number % 2].tolist()
            placed = zip(waves[number].tolist(), slots, strict=False)  # the last may be shorter
            reads.append([self._streamer.read(matrix, e, (pool, index, s)) for e, s in placed])

        try:
            for number, wave in enumerate(waves):
                for ahead in range(len(reads), min(number + 2, len(waves))):
                    start(ahead)
                self._streamer.wait(reads[number], self._stop)
                slots = borrowed[number % 2][: len(wave)]
                yield Group(wave, self._addresses(self._layers[layer], index, slots))
        finally:
            for started in reads:
                Streamer.settle(started)
            for slots in borrowed:
                pool.table.unpin(slots)

    def recover(self) -> None:
        """Make the books true again after a failure anywhere: no lease or wave is left, and no
        slot counts as filled whose reads did not all come."""
        self._streamer.drain()
        for pool in self.pools:
            pool.table.recover()

    def count_uses(self, layer: int, experts: Experts) -> None:
        """Count hits and misses of experts that `waves` will bring."""
        resident = int((self._pool_of[layer].table.find(layer, experts) != NOWHERE).sum())
        self.hits += resident
        self.misses += len(experts) - resident

    def check_integrity(self) -> None:
        """Raise AssertionError unless every table agrees with itself."""
        for pool in self.pools:
            pool.table.check_integrity()

    def close(self) -> None:
        """Give the slots' memory back, after the streamer has stopped."""
        for pool in self.pools:
            pool.close()
