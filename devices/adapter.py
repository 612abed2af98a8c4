"""Adapters: low-rank changes of a model's weights (LoRA) that llama.cpp computes beside them."""

import os
from pathlib import Path
from typing import Any

from haversack.devices._native import llama
from haversack.devices.errors import ModelFileError
from haversack.devices.logs import captured_logs


class Adapter:
    """What changes the weights of one context, if anything does."""

    def __init__(self) -> None:
        self._adapter: Any = None

    def use(self, model: Any, context: Any, path: Path) -> None:
        """Have `context` compute with the changes in the GGUF at `path` from its next pass on, in
        place of earlier ones. Raises ModelFileError; then all is as before."""
        with captured_logs() as log:
            made = llama.llama_adapter_lora_init(model, os.fsencode(path))
        if not made:
            raise ModelFileError(f"llama.cpp cannot read the adapter {path}: {log.reason()}")
        adapters, scales = llama.adapter_arrays(made)
        llama.llama_set_adapters_lora(context, adapters, 1, scales)
        self.close()
        self._adapter = made

    def close(self) -> None:
        """Free the changes, which no context may use any more; may be called twice."""
        if self._adapter:
            llama.llama_adapter_lora_free(self._adapter)
            self._adapter = None
