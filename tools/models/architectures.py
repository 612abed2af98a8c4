"""The metadata that llama.cpp's loaders require of a tiny model, one entry per MoE architecture.

llama.cpp names the tensors itself. An entry has only the keys without which llama.cpp refuses a
model, and the optional tensors that published files have.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

Key = int | float | list[int]
Metadata = dict[str, str | Key]

HEAD_DIM = 64
NUM_KEY_VALUE_HEADS = 2
SLIDING_WINDOW = 64


@dataclass(frozen=True)
class TinyShape:
    """The sizes of a tiny model; `hidden_size` holds whole pairs of heads of 64."""

    num_hidden_layers: int = 3
    num_experts: int = 8
    num_experts_per_tok: int = 2
    hidden_size: int = 256
    moe_intermediate_size: int = 256
    vocab_size: int = 512

    def __post_init__(self) -> None:
        if self.hidden_size < 1 or self.hidden_size % (2 * HEAD_DIM):
            raise ValueError(f"hidden_size {self.hidden_size} is not a multiple of {2 * HEAD_DIM}")
        if not 1 <= self.num_experts_per_tok <= self.num_experts:
            raise ValueError(
                f"num_experts_per_tok {self.num_experts_per_tok} is not within"
                f" 1 .. num_experts {self.num_experts}"
            )
        if self.num_hidden_layers < 2:
            raise ValueError(f"num_hidden_layers {self.num_hidden_layers} is less than 2")
        if self.moe_intermediate_size < 1 or self.vocab_size < 1:
            raise ValueError("moe_intermediate_size and vocab_size must be above zero")


@dataclass(frozen=True)
class Architecture:
    """One architecture: `keys` beside the common ones, `per_layer` values repeated over layers.

    `optional` are endings of the names of optional tensors in published files. `fusable` says that
    llama.cpp also takes gate and up as one tensor, `fused` that published files store them so.
    """

    keys: Mapping[str, Key] = field(default_factory=dict[str, Key])
    per_layer: Mapping[str, tuple[int, ...]] = field(default_factory=dict[str, tuple[int, ...]])
    optional: tuple[str, ...] = ()
    expert_type: str = "F16"
    grouped_heads: bool = True
    shared_expert: bool = False
    fusable: bool = False
    fused: bool = False
    least_layers: int = 2


_ATTENTION_BIASES = ("attn_q.bias", "attn_k.bias", "attn_v.bias")
_SIGMOID = {"expert_gating_func": 2}
_LEADING_DENSE = {"leading_dense_block_count": 1, "expert_shared_count": 1}
_DELTA_NET = {
    "full_attention_interval": 2,
    "ssm.conv_kernel": 4,
    "ssm.state_size": 32,
    "ssm.group_count": 2,
    "ssm.time_step_rank": 4,
    "ssm.inner_size": 128,
}

ARCHITECTURES: dict[str, Architecture] = {
    "llama": Architecture(),
    "qwen2moe": Architecture(shared_expert=True, optional=_ATTENTION_BIASES),
    "qwen3moe": Architecture(),
    "olmoe": Architecture(grouped_heads=False),
    "deepseek2": Architecture(
        keys={
            **_LEADING_DENSE,
            **_SIGMOID,
            "attention.head_count_kv": 1,
            "attention.q_lora_rank": 64,
            "attention.kv_lora_rank": 64,
            "attention.key_length": 96,
            "attention.key_length_mla": 96,
            "attention.value_length_mla": HEAD_DIM,
            "rope.dimension_count": 32,
            "expert_weights_scale": 2.5,
        },
        optional=("exp_probs_b.bias",),
        fusable=True,
    ),
    "gpt-oss": Architecture(
        keys={"attention.sliding_window": SLIDING_WINDOW},
        optional=(".bias",),
        expert_type="MXFP4",
    ),
    "granitemoe": Architecture(
        keys={
            "logit_scale": 6.0,
            "residual_scale": 0.5,
            "embedding_scale": 2.0,
            "attention.scale": 0.125,
        },
    ),
    "phimoe": Architecture(optional=(".bias",)),
    "glm4moe": Architecture(
        keys={**_LEADING_DENSE, **_SIGMOID},
        optional=(*_ATTENTION_BIASES, "exp_probs_b.bias"),
    ),
    "lfm2moe": Architecture(
        keys={"leading_dense_block_count": 1, **_SIGMOID, "shortconv.l_cache": 3},
        per_layer={"attention.head_count_kv": (0, NUM_KEY_VALUE_HEADS)},  # 0: a convolution
        optional=("exp_probs_b.bias",),
    ),
    "qwen3next": Architecture(
        keys=_DELTA_NET, shared_expert=True, optional=("ssm_dt.bias",), fusable=True
    ),
    "qwen35moe": Architecture(
        keys={**_DELTA_NET, "rope.dimension_sections": [11, 11, 10, 0]},
        shared_expert=True,
        optional=("ssm_dt.bias",),
        fusable=True,
    ),
    "llama4": Architecture(keys={"interleave_moe_layer_step": 1}, least_layers=4),
    "smallthinker": Architecture(keys={"attention.sliding_window": SLIDING_WINDOW, **_SIGMOID}),
    "gemma4": Architecture(
        keys={
            "attention.sliding_window": SLIDING_WINDOW,
            "attention.key_length_swa": HEAD_DIM,
            "attention.value_length_swa": HEAD_DIM,
            "rope.dimension_count_swa": HEAD_DIM,
            "embedding_length_per_layer_input": 0,
            "final_logit_softcapping": 30.0,
        },
        per_layer={"attention.sliding_window_pattern": (1, 0)},
        optional=("ffn_gate_inp.scale", "ffn_down_exps.scale", "rope_freqs.weight"),
        fusable=True,
        fused=True,
    ),
}


def architecture_named(name: str) -> Architecture:
    """Return the entry of an architecture. If there is none, raises ValueError, which lists all."""
    if name not in ARCHITECTURES:
        raise ValueError(f'no architecture "{name}": choose one of {", ".join(ARCHITECTURES)}')
    return ARCHITECTURES[name]


def tiny_metadata(name: str, shape: TinyShape) -> Metadata:
    """Return the GGUF key-values of a tiny model of the architecture, without a vocabulary."""
    architecture = architecture_named(name)
    shape = replace(
        shape, num_hidden_layers=max(shape.num_hidden_layers, architecture.least_layers)
    )
    layers = range(shape.num_hidden_layers)
    arrays = {
        key: [values[layer % len(values)] for layer in layers]
        for key, values in architecture.per_layer.items()
    }
    keys = {**_common_keys(architecture, shape), **architecture.keys, **arrays}
    return {
        "general.architecture": name,
        "general.name": f"tiny random {name}",
        "tokenizer.ggml.model": "no_vocab",
        **{f"{name}.{key}": value for key, value in keys.items()},
    }


def _common_keys(architecture: Architecture, shape: TinyShape) -> Metadata:
    num_heads = shape.hidden_size // HEAD_DIM
    keys: Metadata = {
        "context_length": 512,
        "embedding_length": shape.hidden_size,
        "block_count": shape.num_hidden_layers,
        "feed_forward_length": shape.moe_intermediate_size,
        "expert_feed_forward_length": shape.moe_intermediate_size,
        "expert_count": shape.num_experts,
        "expert_used_count": shape.num_experts_per_tok,
        "vocab_size": shape.vocab_size,
        "attention.head_count": num_heads,
        "attention.head_count_kv": NUM_KEY_VALUE_HEADS if architecture.grouped_heads else num_heads,
        "attention.key_length": HEAD_DIM,
        "attention.value_length": HEAD_DIM,
        "attention.layer_norm_rms_epsilon": 1e-5,
        "attention.layer_norm_epsilon": 1e-5,
        "rope.dimension_count": HEAD_DIM,
        "rope.freq_base": 10000.0,
    }
    if architecture.shared_expert:
        keys["expert_shared_feed_forward_length"] = shape.moe_intermediate_size
    return keys
