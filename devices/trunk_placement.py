"""On which devices llama.cpp's layers lie."""

from dataclasses import dataclass
from typing import Any

from haversack.devices import _native as native
from haversack.devices._native import llama
from haversack.devices.backends import Device


@dataclass(frozen=True)
class LayersOn:
    """A number of layers on a device; raises ValueError for less than one."""

    device: Device
    num_layers: int

    def __post_init__(self) -> None:
        if self.num_layers < 1:
            raise ValueError(
                f"{self.device.name} is given {self.num_layers} layers: give 1 or more"
            )


@dataclass(frozen=True)
class TrunkPlacement:
    """Where a model's layers lie: the last ones on devices, as many on each as `layers` says, in
    this order; all others, and the input, in the host's memory. The output counts as one more
    layer, behind the last. A layer's keys and values lie where it lies. Streamed experts lie in
    slots, wherever their layer does.

    The bits of a device's results may depend on how many rows a pass has. With `rows_alone` each
    row of a pass of a few is computed alone, so that it has the bits of a single token, as in the
    host's memory; it then takes as long as one.
    """

    layers: tuple[LayersOn, ...] = ()
    rows_alone: bool = True

    @property
    def num_layers(self) -> int:
        """How many layers, with the output, lie on devices."""
        return sum(each.num_layers for each in self.layers)

    @property
    def needs_single_rows(self) -> bool:
        """Whether the rows of a pass of a few must be computed one after the other."""
        return self.rows_alone and self.num_layers > 0

    def fill(self, params: Any) -> tuple[Any, Any]:
        """Set what a struct llama_model_params says of devices. What is returned must outlive the
        load. An empty list keeps llama.cpp from taking every GPU that it finds."""
        devices = (native.Address * (len(self.layers) + 1))(
            *(each.device.address for each in self.layers), None
        )
        shares = native.float_buffer(max(int(llama.llama_max_devices()), len(self.layers)))
        for place, each in enumerate(self.layers):
            shares[place] = each.num_layers
        params.devices, params.tensor_split = native.addressof(devices), native.addressof(shares)
        params.n_gpu_layers = self.num_layers
        return devices, shares
