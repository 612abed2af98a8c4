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
        self.pass_end: tuple[int | None, int | None] = (None, None)
        if engine is not None:
            self.pass_end = native.engine_pass_end, engine.address

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

    @property
    def can_lean(self) -> bool:
        """Return whether a context's graphs have a router's choice that leans."""
        return bool(native.device_can_lean(self.address))

    @property
    def goes_on(self) -> bool:
        """Whether passes may follow each other without `after_pass` in between."""
        return self._engine is None or self._engine.goes_on

    def after_pass(self, failure: int) -> BaseException | None:
        """Return the error of a pass that ended in `failure`, None for 0."""
        return self._engine.after_pass(failure) if self._engine is not None else None

    def close(self) -> None:
        """Free the device, after its context; may be called twice."""
        if self.address is not None:
            native.device_delete(self.address)
            self.address = None
