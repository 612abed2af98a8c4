"""The expert store: brings a layer's experts into slots and says when they may be multiplied."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from haversack.cache.odds import Odds
from haversack.cache.policies import Slots
from haversack.cache.slots import NOWHERE
from haversack.devices.interrupts import StopFlag
from haversack.devices.readers import Read, Readers
from haversack.offload.guess import Guess, let_go
from haversack.offload.pool import ExpertPool, PoolPlan, resting_place
from haversack.offload.resident_file import Residents
from haversack.offload.streamer import Streamer
from haversack.offload.warm_start import WarmStart
from haversack.quant.gguf import ExpertLayer, ModelGeometry

Experts = npt.NDArray[np.integer]


class Group(NamedTuple):
    """Experts whose matrix is in memory now, and where: `addresses[i]` is `experts[i]`'s, whole
    multiples of `stride` bytes from each other's."""

    experts: Experts
    addresses: list[int]
    stride: int


@dataclass
class Lease:
    """A layer's experts, all in slots and pinned there; some may still be on their way.

    `missing` are the positions in `experts` that had not come when it began, `reads[m][i]` the
    read of matrix m of the i-th of them.
    """

    layer: ExpertLayer
    experts: Experts
    slots: Slots
    missing: npt.NDArray[np.intp]
    reads: list[list[Read]] = field(default_factory=list)


@dataclass(frozen=True)
class Visit:
    """A layer's experts that a batch uses, more than there are slots: of those at `resident`, which
    are pinned in `slots`, nothing is read; the others come matrix by matrix."""

    layer: ExpertLayer
    experts: Experts
    resident: npt.NDArray[np.intp]
    slots: Slots


class ExpertStore:
    """All slots of a model and the reads into them. One thread uses it: the one that decodes."""

    def __init__(
        self, geometry: ModelGeometry, plans: Sequence[PoolPlan], streamer: Streamer, stop: StopFlag
    ) -> None:
        self._streamer, self._stop = streamer, stop
        self.pools = [ExpertPool(plan) for plan in plans]
        self._pool_of = {layer: pool for pool in self.pools for layer in pool.plan.layers}
        self._layers = {layer.layer: layer for layer in geometry.layers}
        self._reserve = geometry.num_experts_per_tok  # slots that guesses leave to a token
        self._guesses: dict[int, list[Guess]] = {}  # by layer
        self._absent: dict[int, npt.NDArray[np.bool_]] = {}  # by foreseen layer: had no slot then
        self._warm_start = WarmStart(self.pools, self._layers, streamer, self._reserve)
        self.hits = 0
        self.misses = 0
        self.guessed = 0  # experts read ahead
        self.guessed_right = 0  # of them, those that their layer then chose
        self.odds = Odds(max(layer.num_experts for layer in geometry.layers), len(geometry.layers))
        self._number = {layer: number for number, layer in enumerate(self._layers)}
        # experts, depths, ranks by layer
        self._foreseen: dict[int, list[tuple[int, int, int]]] = {}
        self.needed = 0  # chosen, without a slot before anybody guessed it
        self.foreseeable = 0  # chosen by a foreseen layer, without a slot when it was foreseen

    @property
    def wait_s(self) -> float:
        """Seconds in which reads were waited for."""
        return self._streamer.wait_s

    @property
    def readers(self) -> Readers:
        """The threads that bring experts."""
        return self._streamer.readers

    def pool(self, layer: int) -> ExpertPool:
        """The pool in which the experts of `layer` lie."""
        return self._pool_of[layer]

    def fits(self, layer: int, num_experts: int) -> bool:
        """Whether so many experts of `layer` can be leased at once."""
        return num_experts <= self._pool_of[layer].plan.num_slots

    def lease(self, layer: int, experts: Experts) -> Lease:
        """Pin `experts` (distinct) into slots and start to read those that have none."""
        table, needed = self._pool_of[layer].table, self.needed
        coming = self._settle_guesses(layer, experts)
        coming |= self._warm_start.demanded(layer, experts.tolist())
        slots = table.find(layer, experts)
        absent = slots == NOWHERE
        late = np.array([expert in coming for expert in experts.tolist()], bool)
        held = slots[~absent & ~late]
        assert table.are_ready(held), "an expert that is not wholly there was taken for there"
        table.pin(held)
        table.use(layer, experts)
        lease = Lease(self._layers[layer], experts, slots, np.flatnonzero(absent | late))
        self.hits += len(held)
        self.misses += len(lease.missing)
        self.needed += int(absent.sum())
        self.odds.note_token(self._number[layer], self.needed > needed)
        if absent.any():
            slots[absent] = table.claim(layer, experts[absent])
        if len(lease.missing):
            lease.reads = self._read_all(lease, coming)
        if len(experts) <= self._reserve:  # a batch may want every slot
            self._warm_start.go_on()
        return lease

    def _read_all(self, lease: Lease, coming: dict[int, Guess]) -> list[list[Read]]:
        """Every missing expert's first matrix before any one's second: products go in order."""
        pool = self._pool_of[lease.layer.layer]
        wanted = [(int(lease.experts[i]), int(lease.slots[i])) for i in lease.missing]
        return [
            [
                coming[e].reads[index]
                if e in coming
                else self._streamer.read(matrix, e, (pool, index, slot))
                for e, slot in wanted
            ]
            for index, matrix in enumerate(lease.layer.matrices)
        ]

    # ---------------------------------------------------------------- guesses
    def may_miss(self, layer: int) -> bool:
        """Whether it is worth it to foresee what `layer` chooses."""
        return self.odds.may_miss(self._number[layer])

    def read_ahead(self, layer: int, experts: Experts, ahead: int = 1) -> int:
        """`layer`, `ahead` of the one that runs, may choose `experts` next, the likeliest first:
        read those without a slot that are worth it, as far as there are slots that no token needs.
        Returns how many are worth it."""
        pool = self._pool_of[layer]
        self._note_absent(layer)
        found = pool.table.find(layer, experts)
        ranks = np.flatnonzero(found == NOWHERE)
        said = [(int(experts[rank]), ahead, int(rank)) for rank in ranks]
        self._foreseen.setdefault(layer, []).extend(said)
        worth = experts[ranks[self.odds.are_worth(ahead, ranks)]]
        self._guess(layer, worth, found[found != NOWHERE], pool.plan.num_slots)
        return len(worth)

    def read_ahead_of_batch(self, layer: int, experts: Experts) -> None:
        """The same of a batch, whose next `layer` is almost sure to choose `experts`: all are worth
        it, as far as there are slots besides those that it needs if it chooses every other one."""
        pool = self._pool_of[layer]
        self._note_absent(layer)
        found = pool.table.find(layer, experts)
        most = max(0, pool.plan.num_slots - pool.plan.num_experts)
        self._guess(layer, experts[found == NOWHERE], found[found != NOWHERE], most)

    def _guess(self, layer: int, absent: Experts, held: Slots, most: int) -> None:
        """Start to read up to `most` of the `absent` experts into slots that no token needs."""
        pool = self._pool_of[layer]
        pool.table.pin(held)  # what is likely must not go for what is less so
        room = min(max(0, pool.table.num_unpinned - self._reserve), most)
        absent = absent[:room]
        slots = pool.table.claim(layer, absent)
        pool.table.unpin(held)
        guesses = [Guess(e, slot) for e, slot in zip(absent.tolist(), slots.tolist(), strict=True)]
        self._guesses.setdefault(layer, []).extend(guesses)
        self.guessed += len(guesses)
        for guess in guesses:  # one whole after the other: there may be time for the likeliest
            for index, matrix in enumerate(self._layers[layer].matrices):
                place = (pool, index, guess.slot)
                read = self._streamer.read(matrix, guess.expert, place, ahead=True)
                guess.reads.append(read)

    def _note_absent(self, layer: int) -> None:
        """`layer` is foreseen now, maybe not for the first time in this pass."""
        everyone = np.arange(self._layers[layer].num_experts)
        absent = self._pool_of[layer].table.find(layer, everyone) == NOWHERE
        earlier = self._absent.get(layer)
        self._absent[layer] = absent if earlier is None else absent | earlier

    def _settle_guesses(self, layer: int, chosen: Experts) -> dict[int, Guess]:
        """`layer` has `chosen`: those read ahead that are still coming are demanded, and given by
        expert; the others are let go."""
        wanted = set(chosen.tolist())
        for expert, ahead, rank in self._foreseen.pop(layer, ()):
            self.odds.note(ahead, rank, expert in wanted)
        if layer in self._absent:
            self.foreseeable += int(self._absent.pop(layer)[chosen].sum())
        coming: dict[int, Guess] = {}
        left = []
        for guess in self._guesses.pop(layer, ()):
            right = guess.expert in wanted
            self.guessed_right += right and not guess.withdrawn
            self.needed += right
            if right:
                guess.want(self._streamer)
            else:
                self._streamer.cancel(guess.reads)
                guess.withdrawn = True
            if guess.done:
                let_go(self._pool_of[layer].table, [guess])
            elif right:
                coming[guess.expert] = guess
            else:
                left.append(guess)
        if left:
            self._guesses[layer] = left
        return coming

    def withdraw(self) -> None:
        """No guess is wanted any more, and a warm start is to pause; returns when no read of either
        is under way."""
        self.drop_guesses()
        self._warm_start.withdraw()

    def drop_guesses(self) -> None:
        """No guess is wanted any more; returns when no read of one is under way."""
        for layer, guesses in self._guesses.items():
            for guess in guesses:
                self._streamer.settle(guess.reads)
                let_go(self._pool_of[layer].table, [guess])
        self._forget_guesses()

    def _forget_guesses(self) -> None:
        for kept in (self._guesses, self._absent, self._foreseen):
            kept.clear()

    # ------------------------------------------------------------- warm start
    def start_warm(self, saved: Residents) -> None:
        """Have what lay in slots read back while nothing else is asked for, see `WarmStart`. Before
        the first lease. Raises ValueError if `saved` is another model's."""
        self._warm_start.start(saved)

    @property
    def is_warm(self) -> bool:
        """Whether nothing is left to be read back."""
        return self._warm_start.over

    def residents(self) -> Residents | None:
        """What to start from next time; None if nothing was leased, and nothing learnt."""
        return self._warm_start.residents() if self.hits + self.misses else None

    # ----------------------------------------------------------------- leases
    def groups(self, lease: Lease, index: int) -> Iterator[Group]:
        """The leased experts in groups, hits first, then those whose matrix `index` has come."""
        missing = lease.missing.tolist()
        late = set(missing)
        hits = [position for position in range(len(lease.experts)) if position not in late]
        if hits:
            yield self._group(lease, index, hits)
        reads = lease.reads[index] if missing else []
        while missing:
            arrived = self._streamer.wait_for_some(reads, self._stop)
            yield self._group(lease, index, [m for m, a in zip(missing, arrived, strict=True) if a])
            missing = [m for m, a in zip(missing, arrived, strict=True) if not a]
            reads = [r for r, a in zip(reads, arrived, strict=True) if not a]

    def _group(self, lease: Lease, index: int, chosen: list[int]) -> Group:
        return self._placed(lease.layer, index, lease.experts[chosen], lease.slots[chosen])

    def _placed(self, layer: ExpertLayer, index: int, experts: Experts, slots: Slots) -> Group:
        pool, rest = self._pool_of[layer.layer], resting_place(layer.matrices[index])
        addresses = [pool.address(index, slot) + rest for slot in slots.tolist()]
        return Group(experts, addresses, pool.stride(index))

    def release(self, lease: Lease) -> None:
        """Unpin the experts: those whose matrices all came stay, the others lose their slot."""
        table = self._pool_of[lease.layer.layer].table
        if len(lease.missing):
            came = [self._streamer.settle(reads) for reads in lease.reads]
            whole = np.array(came, bool).all(axis=0)
            slots = lease.slots[lease.missing]
            table.fill(slots[whole])
            table.drop(slots[~whole])
        table.unpin(lease.slots)

    # ----------------------------------------------------------------- visits
    def visit(self, layer: int, experts: Experts) -> Visit:
        """Pin those of `experts` that are resident, but leave slots for the others to come in."""
        table = self._pool_of[layer].table
        slots = table.find(layer, experts)
        room = max(0, table.num_unpinned - self._reserve)
        resident = np.flatnonzero(slots != NOWHERE)[:room]
        held: Slots = slots[resident]
        assert table.are_ready(held), "a resident expert is not wholly there"
        table.pin(held)
        self.hits += len(held)
        self.misses += len(experts) - len(held)
        return Visit(self._layers[layer], experts, resident, held)

    def leave(self, visit: Visit) -> None:
        """Unpin what `visit` has pinned."""
        self._pool_of[visit.layer.layer].table.unpin(visit.slots)

    def waves(self, visit: Visit, index: int) -> Iterator[Group]:
        """One matrix of each of the visited experts: in groups that stay until the next.

        Residents first, then waves of half the free slots: one is read while the other is
        multiplied. Where a single slot is free, each expert is read into it after the last one was
        multiplied. Each matrix is read at most once. Close the generator, also after an error.
        """
        if len(visit.resident):
            yield self._placed(visit.layer, index, visit.experts[visit.resident], visit.slots)
        others = np.delete(visit.experts, visit.resident)
        yield from self._borrowed_waves(visit.layer.layer, others, index)

    def _borrowed_waves(self, layer: int, experts: Experts, index: int) -> Iterator[Group]:
        pool, matrix = self._pool_of[layer], self._layers[layer].matrices[index]
        num_free = pool.table.num_unpinned
        num_lots = min(2, num_free)  # lots of slots that waves use in turn
        size = max(1, min(len(experts), num_free // 2))
        waves = [experts[start : start + size] for start in range(0, len(experts), size)]
        borrowed = [pool.table.borrow(size) for _ in waves[:num_lots]]
        reads: list[list[Read]] = []

        def start(number: int) -> None:
            slots = borrowed[number % num_lots].tolist()
            placed = zip(waves[number].tolist(), slots, strict=False)  # the last may be shorter
            reads.append([self._streamer.read(matrix, e, (pool, index, s)) for e, s in placed])

        try:
            for number, wave in enumerate(waves):
                for ahead in range(len(reads), min(number + num_lots, len(waves))):
                    start(ahead)
                self._streamer.wait(reads[number], self._stop)
                slots = borrowed[number % num_lots][: len(wave)]
                yield self._placed(self._layers[layer], index, wave, slots)
        finally:
            for started in reads:
                self._streamer.settle(started)
            for slots in borrowed:
                pool.table.unpin(slots)

    def recover(self) -> None:
        """Make the books true again after a failure anywhere: no lease or wave is left, and no
        slot counts as filled whose reads did not all come."""
        self._streamer.drain()
        self._warm_start.withdraw()
        self._forget_guesses()
        for pool in self.pools:
            pool.table.recover()

    def check_integrity(self) -> None:
        """Raise AssertionError unless every table agrees with itself."""
        for pool in self.pools:
            pool.table.check_integrity()

    def close(self) -> None:
        """Give the slots' memory back, after the streamer has stopped."""
        for pool in self.pools:
            pool.close()
