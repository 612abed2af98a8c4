"""What a model is, for people: the facts of its headers."""

from collections import Counter
from collections.abc import Sequence

from haversack.devices.ggml import GgufHeader, type_geometry
from haversack.devices.units import format_bytes
from haversack.quant.gguf import ModelGeometry, opened_headers

Fact = str | int | None


def description(geometry: ModelGeometry) -> dict[str, Fact]:
    """Return the facts of a model by their names, those that its header does not tell as None.
    Raises ModelFileError."""
    with opened_headers(geometry.paths) as headers:
        header = headers[0]

        def value(key: str) -> Fact:
            found = header.value(key)
            return found if isinstance(found, str | int) else None

        def of_architecture(key: str) -> Fact:
            return value(f"{geometry.architecture}.{key}")

        return {
            "name": value("general.name"),
            "architecture": geometry.architecture,
            "license": value("general.license"),
            "num_files": len(geometry.paths),
            "file_bytes": sum(path.stat().st_size for path in geometry.paths),
            "trunk_bytes": geometry.trunk_bytes,
            "expert_bytes": geometry.expert_bytes,
            "layers": of_architecture("block_count"),
            "layers_with_experts": len(geometry.layers),
            "experts": max((layer.num_experts for layer in geometry.layers), default=0),
            "experts_per_token": geometry.num_experts_per_tok,
            "block_types": _block_types(headers),
            "context_tokens": geometry.trained_ctx_tokens,
            "chat_template": "yes" if value("tokenizer.chat_template") else "no",
        }


def _block_types(headers: Sequence[GgufHeader]) -> str:
    """Return the types of the tensors and their bytes, the one with most bytes first."""
    sizes = Counter[str]()
    for header in headers:
        for tensor in header.tensors:
            sizes[type_geometry(tensor.type_id)[0]] += tensor.num_bytes
    return ", ".join(f"{name} {format_bytes(size)}" for name, size in sizes.most_common())
