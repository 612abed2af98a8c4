"""Refusing models that are no causal text models, by what llama.cpp says of a loaded header.

llama.cpp knows more architectures with every version, so no architecture is named here. Before that
`quant.kinds` judges the keys of the file.
"""

from pathlib import Path
from typing import Any

from haversack.devices._native import llama
from haversack.devices.errors import ModelFileError


def wrong_kind(path: Path, kind: str) -> ModelFileError:
    """Return the error for a file of another `kind`, such as "an embedding model"."""
    return ModelFileError(f"{path} is {kind}: haversack runs causal text models, give one")


def refuse_wrong_kind(path: Path, model: Any, context: Any) -> None:
    """Raise ModelFileError unless the model computes the next token from those before it. `model`,
    read from `path`, and its `context` are llama.cpp's; they may be without weights."""
    kind = _kind(model, context)
    if kind is not None:
        raise wrong_kind(path, kind)


def _kind(model: Any, context: Any) -> str | None:
    if llama.llama_model_is_diffusion(model):
        return "a diffusion model"
    if not llama.llama_model_has_decoder(model):
        return "an encoder without a decoder"
    if llama.llama_model_has_encoder(model):
        return "a model with an encoder, which wants more than a text to go on from"
    if not llama.llama_get_memory(context):
        return "a model without a memory of earlier tokens, such as an embedding model"
    if not llama.llama_get_causal_attn(context):
        return "a model in which tokens attend to later ones, such as an embedding model"
    return None
