"""The seam with our own library in front: single tokens never reach Python."""

from haversack.devices.errors import CancelledError, HaversackError
from haversack.devices.expert_buffer import ExpertBuffer
from haversack.devices.ggml import GraphNode
from haversack.devices.interrupts import StopFlag
from haversack.devices.token_path import (
    Answers,
    Failed,
    Foresight,
    LayerPlace,
    MatrixPlace,
    TokenPath,
)
from haversack.offload.executor import ExpertExecutor
from haversack.offload.pool import resting_place
from haversack.offload.seam import Forecast, Seam, Watcher, other_choice
from haversack.offload.store import Experts, ExpertStore
from haversack.quant.gguf import ExpertLayer, ModelGeometry


class NativeSeam(Seam):
    """Does the same as `Seam`, in the same books: batches do not notice who was there before.

    During a warm start, of which the library knows nothing, single tokens are Python's too.
    """

    def __init__(
        self,
        geometry: ModelGeometry,
        store: ExpertStore,
        executor: ExpertExecutor,
        stop: StopFlag,
    ) -> None:
        self._path = TokenPath(
            store.readers,
            executor.token_products,
            Answers(self._on_batch, self._on_choice, self._on_foresee, lambda: stop.requested),
            store.odds.books(),
            geometry.num_experts_per_tok,
        )
        super().__init__(geometry, store, executor, stop)
        self._slot_ids = self._path.slot_ids  # graphs are kept, with whose tensor was put in them
        self.callback = self._path.callback
        self._by_routers = True  # the library can foresee every layer

    def attach(self, geometry: ModelGeometry, buffer: ExpertBuffer) -> None:
        super().attach(geometry, buffer)
        for pool in self._store.pools:
            self._path.add_table(pool.table.books())
        for layer in geometry.layers:
            self._path.add_layer(self._place(layer))
        for weight, (layer, index) in self._products.items():
            self._path.add_product(weight, layer.layer, index)
        self._path.state.by_python = not self._store.is_warm

    def _place(self, layer: ExpertLayer) -> LayerPlace:
        pool = self._store.pool(layer.layer)
        matrices = [
            MatrixPlace(
                rooms=pool.address(index),
                stride=pool.stride(index),
                rest=resting_place(matrix),
                offset=matrix.offset,
                num_bytes=matrix.expert_bytes,
                file=matrix.part,
                kind=(matrix.type_id, matrix.row_elements, matrix.num_rows),
            )
            for index, matrix in enumerate(layer.matrices)
        ]
        row = pool.table.row(layer.layer)
        return LayerPlace(layer.layer, row, self._store.pools.index(pool), matrices)

    def watch(self, watcher: Watcher | None, forecast: Forecast | None = None) -> None:
        super().watch(watcher, forecast)
        self._path.state.watched = watcher is not None
        self._update_foresight()

    # ---------------------------------------------------------------- answers
    def _on_batch(self, node: int, ask: bool) -> bool:
        go_on = self.on_node(node, ask, None)
        if self._error is not None:
            self._path.fail(self._error)
        return go_on

    def _on_choice(self, node: int) -> None:
        self._release()  # of a batch, or none
        self._choose(node)

    def _on_foresee(self, layer: int) -> None:
        self._foresee(layer, GraphNode(self._path.state.choice))
        router = self._predictor.router(layer)
        if router is not None and router.is_plain:
            self._path.add_router(layer, router.num_used, router.weight, router.score_bias)
        else:
            self._by_routers = False

    def _update_foresight(self) -> None:
        how = (
            Foresight.BY_ROUTERS if self._by_routers and not self.forecast else Foresight.BY_PYTHON
        )
        self._path.state.foresees = how if self.reads_ahead else Foresight.NONE

    def _read_ahead(self, layer: int, experts: Experts, ahead: int) -> int:
        if self._path.state.by_python:
            return super()._read_ahead(layer, experts, ahead)
        return self._path.read_ahead(layer, experts, ahead)

    def _withdraw(self) -> None:
        self._path.withdraw()
        super()._withdraw()

    # ------------------------------------------------------------------- passes
    def end_graph(self, computed: bool) -> BaseException | None:
        state = self._path.state
        self._error = self._failure() or self._error
        if state.num_seen and not self._num_seen:  # no batch: the library saw the first choice
            self._began_s, self._single = state.began_s, True  # by the clock of perf_counter
        self._num_seen += state.num_seen
        self._store.hits += state.hits
        self._store.misses += state.misses
        self._store.guessed += state.guessed
        self._store.guessed_right += state.guessed_right
        self._store.foreseeable += state.foreseeable
        self._store.needed += state.needed
        state.num_seen = state.hits = state.misses = 0
        state.guessed = state.guessed_right = state.foreseeable = state.needed = 0
        if self._error is None and computed:
            self._path.release()
        else:
            self._store.readers.drain()
            self._path.forget()
        error = super().end_graph(computed)
        self._update_foresight()
        if state.by_python and self._store.is_warm:
            self._store.withdraw()
            state.by_python = False
        return error

    def _failure(self) -> BaseException | None:
        """What ended the pass in the library, as `Seam` would raise it."""
        why, detail = self._path.take_failure()
        if isinstance(detail, BaseException):
            return detail
        name = detail.name if detail is not None else "an expert's product"
        match why:
            case Failed.NOT:
                return None
            case Failed.STOPPED:
                return CancelledError("the call was cancelled while it waited for the disk")
            case Failed.READ:
                return CancelledError("the call was cancelled before its experts were read")
            case Failed.OTHER_CHOICE:
                return other_choice(name)
            case Failed.PRODUCT:
                return HaversackError(
                    "llama.cpp could not compute the experts: if memory is short, lower --threads"
                )
            case _:
                return AssertionError(f"the slots' books were wrong at {name}")

    @property
    def own_s(self) -> float:
        return self._own_s + float(self._path.state.own_s)

    def close(self) -> None:
        self._path.close()
