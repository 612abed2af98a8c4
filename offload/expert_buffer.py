"""The buffer type that keeps llama.cpp from loading the routed experts."""

from haversack.devices import _native as native
from haversack.devices.errors import HaversackError
from haversack.devices.ggml import GraphNode
from haversack.offload import _native as engine
from haversack.quant.gguf import EXPERT_BIAS_PATTERN


class ExpertBuffer:
    """Address space without memory in which llama.cpp places its expert weights; see
    native/device.hpp. The object must outlive the model.

    `pattern` is the regular expression of the tensor names to keep out, and `overrides` has the
    buffer types of tensors by such expressions. The experts' biases stay in the host's memory, also
    of layers that lie on a device: else its biases would be added there, between two products that
    are computed here.
    """

    def __init__(self, pattern: str) -> None:
        self._address: int | None = engine.expert_buffer_new()
        buffer_type = engine.expert_buffer_type(self._address)
        biases = int(native.ggml_backend_cpu_buffer_type())
        self.overrides = {pattern: buffer_type, EXPERT_BIAS_PATTERN: biases}

    @property
    def error(self) -> HaversackError | None:
        """Return why the addresses could not be reserved; None if they were."""
        if self._address is None or not engine.expert_buffer_failed(self._address):
            return None
        return HaversackError(
            "there is no address space left for the model's experts: raise the limit on virtual"
            " memory (ulimit -v)"
        )

    def weights(self) -> dict[str, int]:
        """Return the addresses of the tensors that were kept out, by name."""
        assert self._address is not None, "the buffer is closed"
        found = engine.placed_weights(self._address)
        return {GraphNode(address).name: address for address in found}

    def finish_loading(self) -> None:
        """Treat the buffer as host memory from now on, because the model is loaded."""
        engine.expert_buffer_finish_loading(self._address)

    def close(self) -> None:
        """Give the address space back, after the model was freed; may be called twice."""
        if self._address is not None:
            engine.expert_buffer_delete(self._address)
            self._address = None
