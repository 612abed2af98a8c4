"""haversack's ggml device for one context of llama.cpp; its sources are in native/."""

from haversack.devices.errors import BindingError
from haversack.offload import _native as native
from haversack.offload.expert_engine import ExpertEngine
from haversack.quant.gguf import ModelGeometry


class ContextDevice:
    """Computes what the device claims of a context's graphs: the products with experts, which
    `engine` has brought into slots, and in passes of a few rows the operations whose bits depend
    on the number of rows. Without `engine` llama.cpp holds all experts itself."""

    def __init__(self, num_threads: int, engine: ExpertEngine | None = None) -> None:
        self._engine = engine
        self.address: int | None = native.device_new(engine and engine.address, num_threads)

    def attach(self, geometry: ModelGeometry, weights: dict[str, int]) -> None:
        """Claim the products with `weights`, the tensors of the experts by name, before a context
        exists. Raises BindingError if one is missing."""
        for place, layer in enumerate(geometry.layers):
            for index, matrix in enumerate(layer.matrices):
                if matrix.name not in weights:
                    raise BindingError(
                        f"llama.cpp did not load {matrix.name}: this model cannot be streamed,"
                        " raise --ram until all of it fits"
                    )
                is_last = index == len(layer.matrices) - 1
                weight = weights[matrix.name]
                native.device_add_weight(self.address, weight, place, index, is_last)

    def end_pass(self, computed: bool) -> BaseException | None:
        """End a pass, `computed` to its last node or not. Return its error, None if it has none."""
        return self._engine.end_pass(computed) if self._engine is not None else None

    def close(self) -> None:
        """Free the device, after its context; may be called twice."""
        if self.address is not None:
            native.device_delete(self.address)
            self.address = None
