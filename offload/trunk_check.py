"""Checking that the weights that llama.cpp loaded are those that were written to the trunk file."""

import threading
from collections import defaultdict, deque
from collections.abc import Collection
from pathlib import Path

from haversack.devices.ggml import GraphNode
from haversack.devices.llama_model import LlamaModel
from haversack.quant.seal import SealedTensor, compare_file, damaged, read_seal


class TrunkCheck:
    """Compares a loaded trunk with its seal, in memory. So it checks the bytes that llama.cpp
    computes with, and reads nothing twice.

    A thread begins while the rest of the model is made; the thread that waits for it helps. Where
    llama.cpp keeps a tensor in another form, or on a device, or does not tell where (on Windows),
    the file is compared instead.
    """

    def __init__(self, trunk: Path, holes: Collection[str]) -> None:
        """Compare the header at once. `holes` names the tensors without data. Raises
        DamagedTrunkError."""
        self._trunk, self._holes = trunk, holes
        self._sealed = read_seal(trunk, holes)
        self._left = deque[tuple[SealedTensor, int]]()  # with addresses
        self._differs = self._in_another_form = False
        self._thread: threading.Thread | None = None

    def compare_file(self) -> None:
        """Compare the whole file instead. Raises DamagedTrunkError."""
        compare_file(self._trunk, self._holes)

    def begin(self, model: LlamaModel) -> None:
        """Begin to compare the weights of `model`, which must not be freed before `close`."""
        places = defaultdict[str, list[GraphNode]](list)
        nodes = model.tensors()
        self._in_another_form = nodes is None
        for node in nodes or ():
            places[node.name].append(node)
        # the largest first, so that two threads end together
        for sealed in sorted(self._sealed, key=lambda sealed: -sealed.tensor.num_bytes):
            for node in places[sealed.tensor.name]:
                is_same = (node.type_id, node.shape) == (sealed.tensor.type_id, sealed.tensor.shape)
                if is_same and node.is_on_host:
                    self._left.append((sealed, node.data_address))
                else:
                    self._in_another_form = True
        self._thread = threading.Thread(target=self._compare, name="trunk check")
        self._thread.start()

    def _compare(self) -> None:
        while self._left:
            try:
                sealed, address = self._left.popleft()
            except IndexError:  # the other thread was faster
                return
            if not sealed.is_in_memory(address):
                self._differs = True
                self._left.clear()

    def finish(self) -> None:
        """Compare the weights that are left. Raises DamagedTrunkError."""
        self._compare()
        self.close()
        if self._differs or self._in_another_form:
            self.compare_file()
        if self._differs:
            raise damaged(self._trunk, "what was read of it is not what it holds")

    def close(self) -> None:
        """End the thread; may be called twice."""
        self._left.clear()
        if self._thread is not None:
            self._thread.join()
