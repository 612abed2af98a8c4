"""The seam: where llama.cpp's graph meets our experts.

llama.cpp shows every node before and after it computes it. A layer's router chooses
(`ffn_moe_topk-L`); before its first product the chosen experts are brought into slots. If a single
token finds them all there, its products are left to llama.cpp, which reads slots instead of experts
because the product's ids are replaced. Else, and for a batch, they are skipped and done by the
executor, in groups as the experts arrive or in waves.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import closing
from typing import Any

import numpy as np
import numpy.typing as npt

from haversack.cache.odds import DEPTH
from haversack.devices.errors import BindingError, CancelledError
from haversack.devices.expert_buffer import ExpertBuffer
from haversack.devices.ggml import (
    NODE_OP,
    OP_MUL_MAT_ID,
    OP_NONE,
    GraphNode,
    SlotIds,
    is_choice,
    memory,
)
from haversack.devices.interrupts import StopFlag
from haversack.offload.executor import ExpertExecutor
from haversack.offload.payoff import Payoff
from haversack.offload.pool import resting_place
from haversack.offload.predictor import Predictor
from haversack.offload.store import Experts, ExpertStore, Group, Lease, Visit
from haversack.quant.gguf import ExpertLayer, ModelGeometry

Watcher = Callable[[int, npt.NDArray[np.int32], GraphNode], None]
Forecast = Callable[[int], Experts | None]  # what a later layer may choose, the likeliest first


class Seam:
    """Answers llama.cpp's evaluation callback (see `devices.llama.Hook`).

    `watcher`, if set, is told of every choice: the layer, the ids (T, N), which it may change, and
    their node, which leads to all that the choice was made from; a choice that is changed cannot be
    foreseen, so nothing is read ahead meanwhile but what `forecast` says, if that is set too.

    It is whole: `NativeSeam` takes single tokens off it, and is tested against it.
    """

    callback: tuple[int, int] | None = None  # what llama.cpp shall call instead, and with what

    def __init__(
        self,
        geometry: ModelGeometry,
        store: ExpertStore,
        executor: ExpertExecutor,
        stop: StopFlag,
    ) -> None:
        self._store, self._executor, self._stop = store, executor, stop
        self._products: dict[int, tuple[ExpertLayer, int]] = {}  # by the weight's address
        self._num_seen = 0  # products of the graph that runs
        self._needed_before = 0  # the store's count when the last one ended
        self._slot_ids = SlotIds(geometry.num_experts_per_tok)
        self._own_s = 0.0
        self._began_s = 0.0  # when the first router of the graph that runs had chosen
        self._single = False  # it chose for one token
        self._choice = 0  # address of the latest router's choice
        self._ids: npt.NDArray[np.int32] = np.zeros((0, 0), np.int32)  # (T, N) of that choice
        self._experts: Experts = np.zeros(0, np.int32)  # the distinct ones
        self._lease: Lease | None = None
        self._visit: Visit | None = None
        self.watcher: Watcher | None = None
        self.forecast: Forecast | None = None
        self._predictor, self._payoff = Predictor(), Payoff()
        layers = [layer.layer for layer in geometry.layers]
        self._later = {layer: layers[i + 1 : i + 1 + DEPTH] for i, layer in enumerate(layers)}
        self._error: BaseException | None = None

    @property
    def own_s(self) -> float:
        """Seconds of our own steps: no read was waited for, and nothing multiplied."""
        return self._own_s

    @property
    def reads_ahead(self) -> bool:
        """Whether experts are read before their layer chooses: not while that does not pay."""
        return self._payoff.on and self._foreseeable

    @property
    def _foreseeable(self) -> bool:
        return self.watcher is None or self.forecast is not None

    def attach(self, geometry: ModelGeometry, buffer: ExpertBuffer) -> None:
        """Point llama.cpp's expert weights at the pools; before a context exists."""
        for layer in geometry.layers:
            pool = self._store.pool(layer.layer)
            for index, matrix in enumerate(layer.matrices):
                weight = buffer.weights.get(matrix.name)
                if weight is None:
                    raise BindingError(
                        f"llama.cpp did not load {matrix.name}: this model cannot be streamed,"
                        " raise --ram until all of it fits"
                    )
                address = pool.address(index) + resting_place(matrix)
                weight.point_at_pool(
                    matrix.type_id, address, pool.stride(index), pool.plan.num_slots
                )
                self._products[weight.address] = (layer, index)

    def watch(self, watcher: Watcher | None, forecast: Forecast | None = None) -> None:
        """Set both, or with None neither."""
        self.watcher, self.forecast = watcher, forecast

    def on_node(self, node: int, ask: bool, _: object) -> bool:
        """`ask`: whether llama.cpp shall stop after this node. Else it is computed: go on?

        No exception may cross the C frame: it is kept, the graph stops, `end_graph` gives it.
        """
        if self._error is not None:
            if ask and GraphNode(node).source_address(0) in self._products:
                GraphNode(node).set_op(OP_NONE)  # a graph in several pieces may go on to the next
            return ask
        try:
            op = memory[node + NODE_OP]
            if op == OP_MUL_MAT_ID or op == OP_NONE:
                product = self._products.get(GraphNode(node).source_address(0))
                if product is not None:
                    return self._timed(self._prepare if ask else self._compute, node, *product)
            elif is_choice(node):
                return ask or self._timed(self._choose, node)
            return False
        except BaseException as error:
            self._error = error
            return ask

    def _timed(self, step: Callable[..., bool], *arguments: Any) -> bool:
        began_s, elsewhere_s = time.perf_counter(), self._elsewhere_s
        try:
            return step(*arguments)
        finally:
            elsewhere_s = self._elsewhere_s - elsewhere_s
            self._own_s += time.perf_counter() - began_s - elsewhere_s

    @property
    def _elsewhere_s(self) -> float:
        return self._store.wait_s + self._executor.product_s

    def end_graph(self, computed: bool) -> BaseException | None:
        """What stopped the graph, or that not every expert product in it was ours: another would
        have multiplied whatever lies in the slots. Also ends the last layer's lease."""
        error, self._error = self._error, None
        num_seen, self._num_seen = self._num_seen, 0
        needed_before, self._needed_before = self._needed_before, self._store.needed
        if error is None and computed:
            self._release()
            if not self._single:
                self._store.drop_guesses()
            elif self._foreseeable:
                pass_s = time.perf_counter() - self._began_s
                self._payoff.note_pass(pass_s, self._store.needed - needed_before)
        else:
            self._lease = self._visit = None
            self._store.recover()
        if error is None and computed and num_seen != len(self._products):
            error = BindingError(
                f"llama.cpp's graph showed {num_seen} of {len(self._products)} expert products:"
                " this model cannot be streamed, raise --ram until all of it fits"
            )
        return error

    def close(self) -> None:
        """Nothing is left to free; may be called twice."""

    def _choose(self, node: int) -> bool:
        """A router has chosen: remember whom."""
        if self._stop.requested:
            raise CancelledError("the call was cancelled")
        choice = GraphNode(node)
        ids = choice.array(np.int32)[0]
        if self._num_seen == 0:
            self._began_s, self._single = time.perf_counter(), len(ids) == 1
        self._choice = node
        if self.watcher is not None:
            self.watcher(int(choice.name.rpartition("-")[2]), ids, choice)
        self._ids = ids.copy()
        return True

    def _bring(self, layer: int) -> None:
        """The layer that chose is about to multiply: start to bring its experts."""
        self._release()
        if len(self._ids) == 1:
            self._experts = self._ids[0]
            self._lease = self._store.lease(layer, self._experts)
            self._slot_ids.set(self._lease.slots)
            self._foresee(layer, GraphNode(self._choice))
            return
        self._experts = np.unique(self._ids)
        if self._store.fits(layer, len(self._experts)):
            if self._num_seen == 1:
                self._withdraw()
            self._lease = self._store.lease(layer, self._experts)
            self._foresee_of_batch(layer, GraphNode(self._choice))
        else:
            self._withdraw()
            self._visit = self._store.visit(layer, self._experts)

    def _foresee(self, layer: int, choice: GraphNode) -> None:
        """Have the next layer's likeliest read ahead, or where none of those is worth it, those of
        the one after it."""
        worthwhile = self.reads_ahead
        forecast = self.forecast or self._own_forecast(layer, choice, worthwhile)
        if forecast is None or not worthwhile:
            return
        for ahead, later in enumerate(self._later[layer], 1):
            if not self._store.may_miss(later):
                continue
            likeliest = forecast(later)
            if likeliest is None or self._read_ahead(later, likeliest, ahead):
                return

    def _foresee_of_batch(self, layer: int, choice: GraphNode) -> None:
        """Have what the next layer is almost sure to choose read ahead: the drive would rest while
        its attention is computed, and a batch uses most experts anyway."""
        router_input = self._predictor.learn(layer, choice)
        if router_input is None or not self._foreseeable:
            return
        later, *rest = self._later[layer] or [layer]
        if rest and self._store.may_miss(later):  # the last layer may choose for one token alone
            inputs = router_input.array(np.float32)[0]
            popular = self._predictor.popular(later, inputs, self._executor.plain_product)
            if popular is not None:
                self._store.read_ahead_of_batch(later, popular)

    def _own_forecast(self, layer: int, choice: GraphNode, needed: bool) -> Forecast | None:
        """What this layer's router input says of later layers; nothing if it is not `needed`, but
        a router is looked at once in any case."""
        if self._predictor.has_seen(layer) and not needed:
            return None
        router_input = self._predictor.learn(layer, choice)
        if router_input is None or not needed:
            return None
        inputs = router_input.array(np.float32)[0, 0]
        return lambda later: self._predictor.likeliest(later, inputs)

    def _read_ahead(self, layer: int, experts: Experts, ahead: int) -> int:
        return self._store.read_ahead(layer, experts, ahead)

    def _withdraw(self) -> None:
        """A batch comes: it wants all slots and the whole drive."""
        self._store.withdraw()

    def _prepare(self, address: int, layer: ExpertLayer, index: int) -> bool:
        """A product is next: a token's is llama.cpp's own, over slots, if they are all filled."""
        node = GraphNode(address)
        node.set_op(OP_NONE)
        self._num_seen += 1
        slot_ids = self._slot_ids.address
        if node.source_address(2) not in (self._choice, slot_ids):
            raise other_choice(node.name)
        if index == 0:
            self._bring(layer.layer)
        if len(self._ids) > 1:
            return True
        assert self._lease is not None and self._lease.layer is layer
        if self._lease.reads:
            return True
        node.set_source(2, slot_ids)
        node.set_op(OP_MUL_MAT_ID)
        return False

    def _compute(self, address: int, layer: ExpertLayer, index: int) -> bool:
        """A product was skipped: do it here, with the experts that are there, then with those that
        come."""
        groups = self._groups(index)
        single = len(self._ids) == 1
        multiply = self._executor.multiply_token if single else self._executor.multiply
        with closing(groups):  # type: ignore[type-var]
            multiply(GraphNode(address), self._ids, layer.matrices[index], groups)
        return True

    def _groups(self, index: int) -> Iterator[Group]:
        if self._lease is not None:
            return self._store.groups(self._lease, index)
        assert self._visit is not None, "nobody has brought the experts"
        return self._store.waves(self._visit, index)

    def _release(self) -> None:
        if self._lease is not None:
            lease, self._lease = self._lease, None
            self._store.release(lease)
        if self._visit is not None:
            visit, self._visit = self._visit, None
            self._store.leave(visit)


def other_choice(product: str) -> BindingError:
    """What to raise of a product whose experts no router chose."""
    return BindingError(
        f"{product} uses another choice of experts than its layer's router made:"
        " this model cannot be streamed, raise --ram until all of it fits"
    )
