"""The buffer type that keeps llama.cpp's hands off the routed experts."""

import numpy as np

from haversack.devices import _native as native
from haversack.devices.errors import HaversackError
from haversack.devices.ggml import GraphNode
from haversack.devices.memory import AddressSpace

_ALIGNMENT_BYTES = 64
_STATUS_SUCCESS = 0  # enum ggml_status


class ExpertBuffer:
    """Address space without memory, where llama.cpp believes its expert weights to lie.

    Every expert tensor placed here is kept, and told that its rows lie on top of each other: so
    it has no bytes (or one element), and the loader reads no more. While a model loads the buffer
    says "not host memory", so the loader writes nothing itself; after `finish_loading` it says
    "host memory", so the scheduler leaves the experts' products on the CPU. The tensors must
    point elsewhere before anything is computed: pages of the buffer are not readable.

    `pattern` is the regular expression of the tensor names to keep out; `weights` maps each name
    to its tensor. The object must outlive the model.
    """

    def __init__(self, pattern: str) -> None:
        self.weights: dict[str, GraphNode] = {}
        self.error: HaversackError | None = None  # why the addresses could not be had
        self._loading = True
        self._spaces: list[AddressSpace] = []
        self._bases: dict[int, int] = {}
        self._name = np.frombuffer(b"Experts\0", np.uint8)
        self._type = native.BufferType(
            native.BufferTypeInterface(
                get_name=native.GetName(lambda _: native.address_of(self._name)),
                alloc_buffer=native.AllocBuffer(self._allocate),
                get_alignment=native.GetAlignment(lambda _: _ALIGNMENT_BYTES),
                is_host=native.IsHost(lambda _: not self._loading),
            )
        )
        self._interface = native.BufferInterface(
            free_buffer=native.FreeBuffer(lambda _: None),
            get_base=native.GetBase(lambda buffer: self._bases[buffer]),
            init_tensor=native.InitTensor(self._keep),
            set_tensor=native.SetTensor(lambda *_: None),
        )
        self._overrides = (native.BufferOverride * 2)(
            native.BufferOverride(pattern.encode(), native.addressof(self._type)),
            native.BufferOverride(None, None),
        )

    @property
    def overrides_address(self) -> int:
        """What `llama_model_params.tensor_buft_overrides` takes."""
        return int(native.addressof(self._overrides))

    def _allocate(self, _: int, num_bytes: int) -> int | None:
        try:
            space = AddressSpace(num_bytes)
        except HaversackError as error:  # it must not cross the C frame
            self.error = error
            return None
        buffer: int | None = native.ggml_backend_buffer_init(
            native.addressof(self._type), self._interface, None, num_bytes
        )
        if buffer is not None:
            self._spaces.append(space)
            self._bases[buffer] = space.address
        return buffer

    def _keep(self, _: int, tensor: int) -> int:
        node = GraphNode(tensor)
        node.take_no_bytes()
        self.weights[node.name] = node
        return _STATUS_SUCCESS

    def finish_loading(self) -> None:
        """The model is loaded: from now on this is host memory."""
        self._loading = False

    def close(self) -> None:
        """Give the address space back, after the model is gone; may be called twice."""
        self.weights.clear()
        while self._spaces:
            self._spaces.pop().close()
