"""The decoder that `train` trains, in torch: qwen3moe with experts, qwen3 without (the dense twin).

Parameters carry the names and layouts of the GGUF tensors they become. Axis letters: B sequences,
T their tokens, N = B x T rows, C hidden size, H heads, D head size, E experts, K experts per token,
F width of an expert, V vocabulary.
"""

from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from haversack.edge.learning.layers import (
    causal_attention,
    rms_norm,
    rotate,
    rotation_angles,
    swiglu,
)

_INIT_STD = 0.02
GROUP_MULTIPLE = 64


@dataclass(frozen=True)
class DecoderShape:
    """The sizes of a decoder. `num_experts` 0 means dense: its one feed-forward network has the
    width `num_experts_per_tok` x `moe_intermediate_size`, which is what a token uses of a
    mixture."""

    vocab_size: int = 4096
    hidden_size: int = 256
    num_hidden_layers: int = 8
    num_attention_heads: int = 4
    num_key_value_heads: int = 2
    head_dim: int = 64
    num_experts: int = 32
    num_experts_per_tok: int = 4
    moe_intermediate_size: int = 256
    context_tokens: int = 512
    rope_theta: float = 10000.0
    rms_norm_eps: float = 1e-6

    def __post_init__(self) -> None:
        if self.num_attention_heads % self.num_key_value_heads:
            raise ValueError("num_attention_heads must be a multiple of num_key_value_heads")
        if self.num_experts and self.num_experts < self.num_experts_per_tok:
            raise ValueError("num_experts is below num_experts_per_tok")

    @property
    def dense_intermediate_size(self) -> int:
        return self.num_experts_per_tok * self.moe_intermediate_size

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as plain values, as a checkpoint keeps them."""
        return asdict(self)


@dataclass
class Routing:
    """What the routers of one pass chose: lists with an entry for each layer.

    `inputs` (N, C) are the routers' inputs, `probabilities` (N, E) their softmax, `chosen` (N, K)
    the experts from the most to the least likely.
    """

    inputs: list[Tensor]
    probabilities: list[Tensor]
    chosen: list[Tensor]


class Decoder(nn.Module):
    """The model. `balance_loss` of the last pass is the auxiliary loss of Switch Transformer (Fedus
    et al. 2021, section 2.2), mean over layers: 1 when the load is even."""

    def __init__(self, shape: DecoderShape, seed: int = 0) -> None:
        super().__init__()
        self.shape = shape
        self.token_embd = nn.Parameter(torch.empty(shape.vocab_size, shape.hidden_size))
        self.blk = nn.ModuleList(Block(shape) for _ in range(shape.num_hidden_layers))
        self.output_norm = nn.Parameter(torch.ones(shape.hidden_size))
        self.output = nn.Parameter(torch.empty(shape.vocab_size, shape.hidden_size))
        self.balance_loss: Tensor | float = 0.0
        self._initialise(seed)

    def _initialise(self, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        residual_std = _INIT_STD / (2 * self.shape.num_hidden_layers) ** 0.5
        for name, parameter in self.named_parameters():
            if parameter.ndim > 1:
                into_residual = name.endswith(("attn_output", "ffn_down", "ffn_down_exps"))
                std = residual_std if into_residual else _INIT_STD
                nn.init.normal_(parameter, std=std, generator=generator)

    def forward(self, tokens: Tensor, routing: Routing | None = None) -> Tensor:
        """Return the logits (B, T, V) after each of `tokens` (B, T) int64; fill `routing` if
        given."""
        balances: list[Tensor] = []
        angles = rotary_angles(self.shape, tokens.shape[1], tokens.device)
        hidden = functional.embedding(tokens, self.token_embd)
        for block in self.blk:
            hidden, balance = block(hidden, angles, routing)
            balances += balance
        if balances:
            self.balance_loss = torch.stack(balances).mean()
        hidden = rms_norm(hidden, self.output_norm, self.shape.rms_norm_eps)
        return functional.linear(hidden, self.output)


class Block(nn.Module):
    """One layer: attention, then experts or the dense network, each added to its input."""

    def __init__(self, shape: DecoderShape) -> None:
        super().__init__()
        self.shape = shape
        c, d = shape.hidden_size, shape.head_dim
        heads, kv_heads = shape.num_attention_heads, shape.num_key_value_heads
        self.attn_norm = nn.Parameter(torch.ones(c))
        self.attn_q = nn.Parameter(torch.empty(heads * d, c))
        self.attn_k = nn.Parameter(torch.empty(kv_heads * d, c))
        self.attn_v = nn.Parameter(torch.empty(kv_heads * d, c))
        self.attn_q_norm = nn.Parameter(torch.ones(d))
        self.attn_k_norm = nn.Parameter(torch.ones(d))
        self.attn_output = nn.Parameter(torch.empty(c, heads * d))
        self.ffn_norm = nn.Parameter(torch.ones(c))
        if shape.num_experts:
            e, f = shape.num_experts, shape.moe_intermediate_size
            self.ffn_gate_inp = nn.Parameter(torch.empty(e, c))
            self.ffn_gate_exps = nn.Parameter(torch.empty(e, f, c))
            self.ffn_up_exps = nn.Parameter(torch.empty(e, f, c))
            self.ffn_down_exps = nn.Parameter(torch.empty(e, c, f))
        else:
            f = shape.dense_intermediate_size
            self.ffn_gate = nn.Parameter(torch.empty(f, c))
            self.ffn_up = nn.Parameter(torch.empty(f, c))
            self.ffn_down = nn.Parameter(torch.empty(c, f))

    def forward(
        self, hidden: Tensor, angles: tuple[Tensor, Tensor], routing: Routing | None
    ) -> tuple[Tensor, list[Tensor]]:
        """Return the hidden states (B, T, C) after this layer, and its load balance loss if it has
        one."""
        eps = self.shape.rms_norm_eps
        hidden = hidden + self._attention(rms_norm(hidden, self.attn_norm, eps), angles)
        rows = rms_norm(hidden, self.ffn_norm, eps).flatten(0, 1)  # (N, C)
        if not self.shape.num_experts:
            gated = swiglu(functional.linear(rows, torch.cat([self.ffn_gate, self.ffn_up])))
            return hidden + functional.linear(gated, self.ffn_down).view_as(hidden), []
        mixed, balance = self._experts(rows, routing)
        return hidden + mixed.view_as(hidden), [balance]

    def _attention(self, x: Tensor, angles: tuple[Tensor, Tensor]) -> Tensor:
        shape, (b, t, _) = self.shape, x.shape
        eps, heads, kv_heads = (
            shape.rms_norm_eps,
            shape.num_attention_heads,
            shape.num_key_value_heads,
        )
        projected = functional.linear(x, torch.cat([self.attn_q, self.attn_k, self.attn_v]))
        projected = projected.view(b, t, heads + 2 * kv_heads, shape.head_dim)
        q, k, v = projected.split([heads, kv_heads, kv_heads], dim=2)
        q = rotate(rms_norm(q, self.attn_q_norm, eps), angles)
        k = rotate(rms_norm(k, self.attn_k_norm, eps), angles)
        k, v = (x.repeat_interleave(heads // kv_heads, dim=2) for x in (k, v))
        mixed = causal_attention(*(x.transpose(1, 2) for x in (q, k, v)))
        return functional.linear(mixed.transpose(1, 2).flatten(2), self.attn_output)

    def _experts(self, rows: Tensor, routing: Routing | None) -> tuple[Tensor, Tensor]:
        num_experts, used = self.shape.num_experts, self.shape.num_experts_per_tok
        with torch.autocast(
            rows.device.type, enabled=False
        ):  # a router is too small to gain from fewer bits
            scores = functional.linear(rows.to(self.ffn_gate_inp.dtype), self.ffn_gate_inp)
            probabilities = scores.softmax(dim=-1)  # (N, E)
        weights, chosen = probabilities.topk(used, dim=-1)  # (N, K)
        weights = weights / weights.sum(dim=-1, keepdim=True)
        if routing is not None:
            routing.inputs.append(rows)
            routing.probabilities.append(probabilities)
            routing.chosen.append(chosen)
        load = torch.bincount(chosen.flatten(), minlength=num_experts)  # (E,)
        balance = num_experts * (load / chosen.numel() * probabilities.mean(dim=0)).sum()
        place, ends = group_places(chosen.flatten(), load)
        copies = rows.unsqueeze(1).expand(-1, used, -1).flatten(0, 1)  # (N K, C)
        products = self._products(dealt(copies, place, int(ends[-1])), ends)
        products = collected(products, place).view(-1, used, rows.shape[-1])
        return (products * weights.unsqueeze(-1).to(products.dtype)).sum(dim=1), balance

    def _products(self, rows: Tensor, ends: Tensor) -> Tensor:
        """Return the output of each expert's network for its rows: those up to its entry of `ends`
        (E,) int32."""
        dtype = torch.bfloat16 if torch.is_autocast_enabled(rows.device.type) else rows.dtype
        gate_up = torch.cat([self.ffn_gate_exps, self.ffn_up_exps], dim=1).to(dtype)
        gated = swiglu(grouped_product(rows.to(dtype), gate_up, ends))
        return grouped_product(gated, self.ffn_down_exps.to(dtype), ends)


class _Dealt(torch.autograd.Function):
    """The function `dealt`, whose gradient is `collected`."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, place: Tensor, num_places: int) -> Tensor:
        ctx.save_for_backward(place)
        return rows.new_zeros(num_places, rows.shape[1]).index_copy_(0, place, rows)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        return gradients[0].index_select(0, ctx.saved_tensors[0]), None, None


class _Collected(torch.autograd.Function):
    """The function `collected`, whose gradient is `dealt`. The gradient of indexing would add up
    rows, which takes longer; no two places are equal."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, place: Tensor) -> Tensor:
        ctx.save_for_backward(place)
        ctx.num_places = len(rows)
        return rows.index_select(0, place)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        empty = gradients[0].new_zeros(ctx.num_places, gradients[0].shape[1])
        return empty.index_copy_(0, ctx.saved_tensors[0], gradients[0]), None


def dealt(rows: Tensor, place: Tensor, num_places: int) -> Tensor:
    """Return `rows` (M, C), each at its `place` (M,) among zero rows: (num_places, C)."""
    result: Tensor = _Dealt.apply(rows, place, num_places)  # type: ignore[no-untyped-call]
    return result


def collected(rows: Tensor, place: Tensor) -> Tensor:
    """Return the rows (M, C) at each `place` (M,)."""
    result: Tensor = _Collected.apply(rows, place)  # type: ignore[no-untyped-call]
    return result


def group_places(experts: Tensor, load: Tensor) -> tuple[Tensor, Tensor]:
    """Return where each row goes when rows are grouped by expert, and where each group ends.

    `experts` (M,) is the expert of each row, `load` (E,) counts the rows of each expert. Groups are
    padded to a multiple of `GROUP_MULTIPLE` rows, because matrix libraries prepare a kernel for
    every new number of rows, and those of GPUs require aligned groups. Returns places (M,) int64
    and ends (E,) int32.
    """
    padded = (load + GROUP_MULTIPLE - 1) // GROUP_MULTIPLE * GROUP_MULTIPLE
    ends = padded.cumsum(0)
    shift = (ends - padded) - (
        load.cumsum(0) - load
    )  # how far the padding before each group moves it
    order = experts.argsort(stable=True)
    place = torch.empty_like(order)
    place[order] = torch.arange(len(order), device=order.device) + shift[experts[order]]
    return place, ends.int()


def grouped_product(rows: Tensor, weights: Tensor, ends: Tensor) -> Tensor:
    """Return rows (M, K), sorted by group, times the transposed weights (E, N, K) of their group:
    (M, N)."""
    return functional.grouped_mm(rows, weights.transpose(1, 2), offs=ends)


def rotary_angles(
    shape: DecoderShape, num_tokens: int, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Return cosine and sine (T, 1, D / 2) of the rotation of each pair of each position."""
    return rotation_angles(shape.head_dim, shape.rope_theta, num_tokens, device)
