"""Warm start: what lay in the slots when the model was closed is read back while nobody waits."""

from collections import deque
from collections.abc import Mapping, Sequence
from itertools import chain

import numpy as np

from haversack.offload.guess import Guess, let_go
from haversack.offload.pool import ExpertPool
from haversack.offload.resident_file import Expert, Residents
from haversack.offload.streamer import Streamer
from haversack.quant.gguf import ExpertLayer

PORTION = 8  # experts under way while the model works: the readers for guesses never run dry


class WarmStart:
    """Reads experts back into slots, the most valuable first, as reads ahead: demand goes first.

    Tables belong to the thread that decodes, so it alone gives slots out and calls them filled,
    and comes by in every layer. Before the first token nobody comes by: so `start` asks for all
    that there is room for, and the readers go on by themselves. That queue is too long for a model
    that works (guesses would wait behind it, and its slots are pinned), so the first layer asked
    for cuts it: what has not begun gives its slot back and waits. From then on a few are under way
    at a time. A batch, which may need every slot, finds none under way (`withdraw`), and the token
    after it goes on where that stopped.

    Each expert is asked for once: it gets a slot that is empty or whose owner the policy values
    less, or is left out, and so is one whose read fails. Then the model runs as without this.
    """

    def __init__(
        self,
        pools: Sequence[ExpertPool],
        layers: Mapping[int, ExpertLayer],
        streamer: Streamer,
        reserve: int,
    ) -> None:
        """`reserve` is how many slots of a pool it leaves to a token."""
        self._pools, self._layers = pools, layers
        self._streamer, self._reserve = streamer, reserve
        self._pool_of = {layer: pool for pool in pools for layer in pool.plan.layers}
        self._waiting: deque[Expert] = deque()
        self._coming: dict[Expert, Guess] = {}  # in the order they were asked for

    # ------------------------------------------------------------ saved, read
    def start(self, saved: Residents) -> None:
        """Take over what the policies had learnt, and ask for the experts that have room. For a
        model that was not used yet. Raises ValueError if `saved` is another model's."""
        experts = dict.fromkeys(saved.experts)
        if len(saved.memories) != len(self._pools) or not all(map(self._exists, experts)):
            raise ValueError("it names experts that this model does not have")
        for pool, memory in zip(self._pools, saved.memories, strict=True):
            pool.table.policy.remember(memory)
        self._waiting.extend(experts)
        self._begin(len(experts))

    def _exists(self, expert: Expert) -> bool:
        layer, expert_id = expert
        pool = self._pool_of.get(layer)
        return pool is not None and 0 <= expert_id < pool.plan.num_experts

    def residents(self) -> Residents:
        """What lies in slots now, and after it what would still have come."""
        self.withdraw()
        ranked = [
            (rank / pool.plan.num_slots, expert)
            for pool in self._pools
            for rank, expert in enumerate(pool.table.residents())
        ]
        experts = [expert for _, expert in sorted(ranked)]
        return Residents(
            list(dict.fromkeys(chain(experts, self._waiting))),
            [pool.table.policy.memory() for pool in self._pools],
        )

    # ---------------------------------------------------------- while it runs
    def demanded(self, layer: int, experts: Sequence[int]) -> dict[int, Guess]:
        """`layer` has chosen `experts`: those of them that are under way, to be waited for; their
        slots and pins are the caller's now. What has come meanwhile is ready."""
        if not self._coming:
            return {}
        self._settle([expert for expert, guess in self._coming.items() if guess.done])
        if len(self._coming) > PORTION:
            self._cut(PORTION)
        chosen = [(layer, expert) for expert in experts if (layer, expert) in self._coming]
        for expert in chosen:
            self._coming[expert].want(self._streamer)
        self._settle([expert for expert in chosen if self._coming[expert].done])
        return {expert[1]: self._coming.pop(expert) for expert in chosen if expert in self._coming}

    def go_on(self) -> None:
        """A token's reads have begun: ask for a few experts more."""
        if self._waiting:
            self._begin(PORTION - len(self._coming))

    @property
    def over(self) -> bool:
        """Whether nothing is left to be read back."""
        return not self._waiting and not self._coming

    def withdraw(self) -> None:
        """Returns when none is under way: what had not begun waits again."""
        if self._coming:
            self._cut(0)

    def _cut(self, count: int) -> None:
        """Have all but the first `count` of those under way wait again. As reads begin in order,
        only the first few can be half there, and be waited for here."""
        cut = dict(list(self._coming.items())[count:])
        self._streamer.settle([read for guess in cut.values() for read in guess.reads])
        self._settle(list(cut))
        left = [expert for expert, guess in cut.items() if not guess.came and not guess.failed]
        self._waiting.extendleft(reversed(left))

    def _settle(self, experts: Sequence[Expert]) -> None:
        """No read of these is under way any more: what came whole is ready."""
        by_pool: dict[ExpertPool, list[Guess]] = {}
        for expert in experts:
            by_pool.setdefault(self._pool_of[expert[0]], []).append(self._coming.pop(expert))
        for pool, guesses in by_pool.items():
            let_go(pool.table, guesses)

    # ------------------------------------------------------------------ reads
    def _begin(self, count: int) -> None:
        """Have the next `count` of those that wait read, as far as they get slots."""
        chosen = self._next(count)
        by_layer: dict[int, list[int]] = {}
        for layer, expert_id in chosen:
            by_layer.setdefault(layer, []).append(expert_id)
        slots: dict[Expert, int] = {}
        for layer, expert_ids in by_layer.items():  # to claim several at once is cheaper
            table = self._pool_of[layer].table
            worthy = table.outlasting(layer, np.array(expert_ids, np.int32))
            claimed = table.claim(layer, worthy).tolist()
            slots |= {(layer, e): s for e, s in zip(worthy.tolist(), claimed, strict=True)}
        for expert in chosen:
            if expert in slots:
                self._coming[expert] = self._read(expert, slots[expert])

    def _next(self, count: int) -> list[Expert]:
        """Of the next `count` those without a slot, as far as there are slots no token needs."""
        room = {pool: pool.table.num_unpinned - self._reserve for pool in self._pools}
        chosen: list[Expert] = []
        for _ in range(min(count, len(self._waiting))):
            layer, expert_id = self._waiting.popleft()
            pool = self._pool_of[layer]
            if room[pool] > 0 and not pool.table.holds(layer, expert_id):
                room[pool] -= 1
                chosen.append((layer, expert_id))
        return chosen

    def _read(self, expert: Expert, slot: int) -> Guess:
        (layer, expert_id), pool = expert, self._pool_of[expert[0]]
        reads = [
            self._streamer.read(matrix, expert_id, (pool, index, slot), ahead=True)
            for index, matrix in enumerate(self._layers[layer].matrices)
        ]
        return Guess(expert_id, slot, reads)
