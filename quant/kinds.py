"""Recognising a GGUF file that is no causal text model, by its keys.

A causal text model computes the next token from the tokens before it. llama.cpp also loads
embedding models, diffusion models, encoders, speech models, and parts of models. Some of them end
the process when tokens are decoded with them. Architectures that are not listed here are judged by
llama.cpp's answers about the loaded header, see `devices.causality`.
"""

from collections.abc import Sequence

from haversack.devices.causality import wrong_kind
from haversack.devices.ggml import GgufHeader

_EMBEDDING = "an embedding model"
_DIFFUSION = "a diffusion model"
_SPEECH = "a speech model"
_PROJECTOR = "a projector (mmproj) that gives another model images or sound"
_ADAPTER = "an adapter (LoRA) that changes another model"
_DRAFTER = "a part that drafts tokens for another model"

# All architectures of llama.cpp that are no causal text models. Some of their files lack the keys
# that `_kind_by_keys` looks at.
_ARCHITECTURES = {
    **dict.fromkeys(("bert", "modern-bert", "nomic-bert", "nomic-bert-moe"), _EMBEDDING),
    **dict.fromkeys(("neo-bert", "jina-bert-v2", "jina-bert-v3", "eurobert"), _EMBEDDING),
    **dict.fromkeys(("gemma-embedding", "llama-embed"), _EMBEDDING),
    **dict.fromkeys(("dream", "llada", "llada-moe", "rnd1"), _DIFFUSION),
    **dict.fromkeys(("eagle3", "dflash", "gemma4-assistant"), _DRAFTER),
    **dict.fromkeys(("qwen3tts", "pockettts"), _SPEECH),
    "wavtokenizer-dec": "a speech codec",
    "t5": "an encoder-decoder model",
    "t5encoder": "an encoder without a decoder",
    "clip": _PROJECTOR,
    "controlvector": "a control vector that steers another model",
}
_TYPES = {
    "adapter": _ADAPTER,
    "imatrix": "an importance matrix that another model is quantised with",
    "mmproj": _PROJECTOR,
}
# enum llama_pooling_type: mean, first token, last token. The result of such a model is one vector
# for a whole text. 4 (a reranker) is left out: some rerankers are causal and answer in text.
_POOLED = (1, 2, 3)


def refuse_other_kinds(headers: Sequence[GgufHeader]) -> None:
    """Raise ModelFileError, which says what the model is, if the keys in `headers` (of all parts)
    tell that it is no causal text model."""
    header = headers[0]
    kind = _kind_by_keys(header)
    if kind is None and not any(part.tensors for part in headers):
        kind = "a vocabulary without weights"
    if kind is not None:
        raise wrong_kind(header.path, kind)


def _kind_by_keys(header: GgufHeader) -> str | None:
    file_type, architecture = header.value("general.type"), header.value("general.architecture")
    if file_type in _TYPES:
        return _TYPES[str(file_type)]
    if header.value("adapter.type") is not None:
        return _ADAPTER
    if architecture in _ARCHITECTURES:
        return f"{_ARCHITECTURES[str(architecture)]} ({architecture})"
    if header.value("diffusion.shift_logits") is not None:
        return f"{_DIFFUSION} ({architecture})"
    if header.value(f"{architecture}.pooling_type") in _POOLED:
        return f"{_EMBEDDING} ({architecture}, pooled)"
    if header.value(f"{architecture}.attention.causal") in (False, 0):
        return f"{_EMBEDDING} or another without causal attention ({architecture})"
    return None
