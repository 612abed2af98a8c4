"""A single token's way through the experts in our own library (sources in devices/native/): it is
llama.cpp's evaluation callback, keeps the slots' books, has experts read and multiplies those that
come late. Batches, and whatever needs Python, it passes on."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from haversack.devices import _native as native
from haversack.devices._native import own
from haversack.devices.ggml import OP_MUL_MAT, OP_MUL_MAT_ID, OP_NONE, GraphNode, SlotIds
from haversack.devices.readers import Failure, Readers
from haversack.devices.token_products import MatrixKind, TokenProducts

Floats = npt.NDArray[np.float32]


class Failed(IntEnum):
    """enum Failure: why a pass cannot go on."""

    NOT, PYTHON, READ, STOPPED, OTHER_CHOICE, PRODUCT, BOOKS = range(7)


class Foresight(IntEnum):
    """enum Foresight: who says what later layers may choose."""

    NONE, BY_PYTHON, BY_ROUTERS = range(3)


class MatrixPlace(NamedTuple):
    """Where one matrix of a layer's experts lies: `rooms` is the address of slot 0's, with one
    every `stride` bytes, and in each it lies at `rest`; `offset` is expert 0's in the `file`."""

    rooms: int
    stride: int
    rest: int
    offset: int
    num_bytes: int
    file: int
    kind: MatrixKind


class LayerPlace(NamedTuple):
    """A layer's own number, its row in the table numbered `table`, and its experts' matrices."""

    number: int
    row: int
    table: int
    matrices: Sequence[MatrixPlace]


@dataclass(frozen=True)
class Answers:
    """Whom the path asks. `on_node` is shown a batch's products (node, ask) and says as llama.cpp's
    callback whether to go on; `on_choice` is told of a router's choice where that matters;
    `foresee` (layer) may read ahead; `should_stop` ends a wait."""

    on_node: Callable[[int, bool], bool]
    on_choice: Callable[[int], None]
    foresee: Callable[[int], None]
    should_stop: Callable[[], bool]


class TokenPath:
    """See the module. `callback` is what llama.cpp calls, and with what; `slot_ids` is the tensor
    that stands in for a router's choice."""

    def __init__(
        self,
        readers: Readers,
        products: TokenProducts,
        answers: Answers,
        odds: Mapping[str, Any],
        max_used: int,
    ) -> None:
        """`odds` are those of `cache.odds`, whose array is shared."""
        self._readers, self._products, self._answers = readers, products, answers
        self._kinds: list[MatrixKind] = []
        self._layer_of: dict[int, int] = {}  # by the layer's own number
        self._kept: list[Any] = [odds]
        self.slot_ids = SlotIds(max_used)
        self._error: BaseException | None = None
        ggml = own.TokenGgml(
            native.address_of_function(native.ggml_backend_graph_compute),
            products.backend,
            OP_NONE,
            OP_MUL_MAT_ID,
            OP_MUL_MAT,
            self.slot_ids.address,
            max_used,
        )
        self._python = own.TokenPython(
            own.OnNode(answers.on_node),
            own.OnChoice(self._on_choice),
            own.Foresee(self._foresee),
            own.ShouldStop(answers.should_stop),
            own.MakeGraph(self._make_graph),
        )
        shared = own.TokenOdds(*_in_c(odds))
        self._address = own.token_path_new(ggml, self._python, shared, readers.address)
        self.state = own.token_path_state(self._address).contents
        self.callback: tuple[int, int] = (own.token_path_on_node, self._address)

    # ------------------------------------------------------------------ making
    def add_table(self, books: Mapping[str, Any]) -> None:
        """A table, whose arrays are shared: the first is number 0."""
        self._kept.append(books)
        own.token_path_add_table(self._address, table_arrays(books))

    def add_layer(self, layer: LayerPlace) -> None:
        """A layer, after its table."""
        self._layer_of[layer.number] = len(self._layer_of)
        made = own.TokenLayer(layer.number, layer.row, layer.table, len(layer.matrices))
        for index, matrix in enumerate(layer.matrices):
            if matrix.kind not in self._kinds:
                self._kinds.append(matrix.kind)
            kind = self._kinds.index(matrix.kind)
            made.matrices[index] = own.TokenMatrix(*matrix[:-1], kind)
        own.token_path_add_layer(self._address, made)

    def add_product(self, weight: int, layer: int, index: int) -> None:
        """Products with the tensor at `weight` are those of matrix `index` of `layer`'s experts."""
        own.token_path_add_product(self._address, weight, self._layer_of[layer], index)

    def add_router(
        self, layer: int, num_used: int, weight: Floats, bias: Floats | None = None
    ) -> None:
        """`layer` chooses the `num_used` experts of the highest scores: `weight` (experts, inputs)
        times its router's input, plus `bias` (experts,). Both must stay."""
        assert weight.flags.c_contiguous and weight.dtype == np.float32, "C reads it as it lies"
        num_experts, num_inputs = weight.shape
        added = None if bias is None else native.address_of(bias)
        self._kept.append((weight, bias))
        router = own.TokenRouter(
            native.address_of(weight), added, num_experts, num_inputs, num_used
        )
        own.token_path_add_router(self._address, self._layer_of[layer], router)

    # ----------------------------------------------------------------- answers
    def fail(self, error: BaseException) -> None:
        """End the pass under way with `error`."""
        if self._error is None:
            self._error = error
        self.state.failure = Failed.PYTHON

    def _on_choice(self, node: int) -> bool:
        try:
            self._answers.on_choice(node)
        except BaseException as error:
            self.fail(error)
        return not self.state.failure

    def _foresee(self, layer: int) -> int:
        try:
            self._answers.foresee(layer)
        except BaseException as error:
            self.fail(error)
        return -1 if self.state.failure else 0

    def _make_graph(self, kind: int, count: int, tensors: Any) -> int | None:
        try:
            graph, placed = self._products.graph(self._kinds[kind], count)
        except BaseException as error:
            self.fail(error)
            return None
        for i, addresses in enumerate(placed):
            tensors[i] = own.ProductTensors(*addresses)
        return graph

    # ------------------------------------------------------------------- a pass
    def take_failure(self) -> tuple[Failed, BaseException | GraphNode | None]:
        """Why the pass had to end, and what tells more of it: an exception of Python's or of a
        read, or a node. Forgets it."""
        why = Failed(self.state.failure)
        detail: BaseException | GraphNode | None = None
        if why == Failed.PYTHON:
            detail = self._error
        elif why == Failed.READ and self.state.failed_error:
            numbers = [getattr(self.state, "failed_" + name) for name in Failure._fields]
            detail = self._readers.error(Failure(*numbers))
        elif self.state.failed_node:
            detail = GraphNode(self.state.failed_node)
        self._error, self.state.failure, self.state.failed_node = None, 0, 0
        return why, detail

    def read_ahead(self, layer: int, experts: npt.NDArray[np.integer], ahead: int) -> int:
        """As `ExpertStore.read_ahead`."""
        ids = np.ascontiguousarray(experts, np.int32)
        number = self._layer_of[layer]
        address = native.address_of(ids)
        return int(own.token_path_read_ahead(self._address, number, address, len(ids), ahead))

    def release(self) -> None:
        """Give up the latest layer's experts: those that came stay, unpinned."""
        own.token_path_release(self._address)

    def withdraw(self) -> None:
        """No guess is wanted any more; returns when none is under way."""
        own.token_path_withdraw(self._address)

    def forget(self) -> None:
        """After a failure, when no read is under way: no lease and no guess is left."""
        own.token_path_forget(self._address)

    def close(self) -> None:
        """Free it; nothing may call it any more. May be called twice."""
        if self._address:
            own.token_path_delete(self._address)
            self._address = None


def table_arrays(books: Mapping[str, Any]) -> Any:
    """The structure that our library knows a table by; `books` must outlive it."""
    return own.TableArrays(*_in_c(books))


def _in_c(books: Mapping[str, Any]) -> list[Any]:
    """Numbers as they are, arrays as their addresses."""
    return [
        native.address_of(value) if isinstance(value, np.ndarray) else value
        for value in books.values()
    ]
