"""A drafter in torch whose linear layers learn low-rank changes; its own weights stay as they are.

Axis letters: T tokens, N places whose logits are wanted, C hidden size, H heads, D head size, V
vocabulary, R rank.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from haversack.edge.learning.decoder_file import DecoderFile, Floats
from haversack.edge.learning.layers import (
    causal_attention,
    rms_norm,
    rotate,
    rotation_angles,
    swiglu,
)
from haversack.edge.learning.learner_plan import LINEAR, RANK


class AdaptedDecoder:
    """The decoder of a file and what it has learnt. `is_adapted` says whether that counts."""

    def __init__(self, decoder: DecoderFile, seed: int = 0) -> None:
        """Raises OSError."""
        self.decoder, self.is_adapted = decoder, True
        self._weights = {
            name: torch.from_numpy(np.array(values)) for name, values in decoder.weights()
        }
        self.output = self._weights.get("output.weight", self._weights["token_embd.weight"])
        generator = torch.Generator().manual_seed(seed)
        self._downs, self._ups = dict[str, nn.Parameter](), dict[str, nn.Parameter]()
        for layer in range(decoder.num_layers):
            for kind in LINEAR:
                name = f"blk.{layer}.{kind}"
                rows, columns = self._weights[f"{name}.weight"].shape
                down = torch.randn(RANK, columns, generator=generator) * columns**-0.5
                self._downs[name] = nn.Parameter(down)
                self._ups[name] = nn.Parameter(torch.zeros(rows, RANK))

    def parameters(self) -> list[nn.Parameter]:
        """Return what is learnt."""
        return [*self._downs.values(), *self._ups.values()]

    def changes(self) -> dict[str, Floats]:
        """Return what was learnt by the names and in the order of rows of an adapter file: lora_a
        (R, columns) and lora_b (rows, R), float32."""
        found = dict[str, Floats]()
        for name, down in self._downs.items():
            up = self._ups[name].detach().numpy()
            found[f"{name}.weight.lora_a"] = down.detach().numpy()
            found[f"{name}.weight.lora_b"] = self.decoder.paired(f"{name}.weight", up)
        return found

    def adopt(self, changes: Mapping[str, Floats]) -> None:
        """Go on from what `changes` gave. Raises ValueError for another model's."""
        for name in self._downs:
            down = changes.get(f"{name}.weight.lora_a")
            up = changes.get(f"{name}.weight.lora_b")
            if down is None or up is None:
                raise ValueError(f"nothing was learnt of {name}")
            sides = (self._downs[name], down), (self._ups[name], up)
            if any(tuple(side.shape) != values.shape for side, values in sides):
                raise ValueError(f"{name} has another shape")
            with torch.no_grad():
                self._downs[name].copy_(torch.from_numpy(np.array(down)))
                halved = self.decoder.halved(f"{name}.weight", np.array(up))
                self._ups[name].copy_(torch.from_numpy(halved))

    def logits(self, tokens: Tensor, places: Tensor) -> Tensor:
        """Return the logits (N, V) after the tokens at `places` (N,) of `tokens` (T,) int64."""
        decoder = self.decoder
        angles = rotation_angles(
            decoder.head_dim, decoder.rope_theta, len(tokens), torch.device("cpu")
        )
        hidden = functional.embedding(tokens, self._weights["token_embd.weight"])
        for layer in range(decoder.num_layers):
            normed = self._norm(hidden, f"blk.{layer}.attn_norm")
            hidden = hidden + self._attention(normed, layer, angles)
            normed = self._norm(hidden, f"blk.{layer}.ffn_norm")
            sides = [self._linear(normed, f"blk.{layer}.{kind}") for kind in ("ffn_gate", "ffn_up")]
            hidden = hidden + self._linear(swiglu(torch.cat(sides, -1)), f"blk.{layer}.ffn_down")
        return functional.linear(self._norm(hidden[places], "output_norm"), self.output)

    def _attention(self, x: Tensor, layer: int, angles: Any) -> Tensor:
        decoder, block = self.decoder, f"blk.{layer}"
        q, k, v = (
            self._linear(x, f"{block}.attn_{kind}").view(1, len(x), -1, decoder.head_dim)
            for kind in "qkv"
        )
        if f"{block}.attn_q_norm.weight" in self._weights:
            q, k = self._norm(q, f"{block}.attn_q_norm"), self._norm(k, f"{block}.attn_k_norm")
        q, k = rotate(q, angles), rotate(k, angles)
        groups = decoder.num_heads // decoder.num_kv_heads
        k, v = (each.repeat_interleave(groups, dim=2) for each in (k, v))
        mixed = causal_attention(*(each.transpose(1, 2) for each in (q, k, v)))
        return self._linear(mixed.transpose(1, 2)[0].flatten(1), f"{block}.attn_output")

    def _norm(self, x: Tensor, name: str) -> Tensor:
        return rms_norm(x, self._weights[f"{name}.weight"], self.decoder.rms_norm_eps)

    def _linear(self, x: Tensor, name: str) -> Tensor:
        found = functional.linear(x, self._weights[f"{name}.weight"], self._bias(name))
        if not self.is_adapted:
            return found
        return found + functional.linear(functional.linear(x, self._downs[name]), self._ups[name])

    def _bias(self, name: str) -> Tensor | None:
        return self._weights.get(f"{name}.bias")
