"""The files of the cache folder: what they are, and their removal."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from haversack.devices.units import format_bytes
from haversack.edge.cache_dir import kv_folder
from haversack.edge.kv_disk import KeptText, list_texts, remove_texts
from haversack.quant.records import LowFile, list_low_files
from haversack.quant.trunk import TrunkFile, list_lone_ngrams, list_trunks, remove_trunks

CacheFile = TrunkFile | LowFile | KeptText


def list_cache(folder: Path) -> Mapping[str, Sequence[CacheFile]]:
    """Return the files in `folder`, by kind. Raises StorageError."""
    return {
        "trunks": list_trunks(folder),
        "low_copies": list_low_files(folder),
        "drafts": list_lone_ngrams(folder),
        "texts": list_texts(kv_folder(folder)),
    }


def remove_cache(folder: Path) -> int:
    """Remove all files of ours from `folder`; return the bytes that this frees. Raises
    StorageError."""
    return remove_trunks(folder) + remove_texts(kv_folder(folder))


def cache_rows(files: Mapping[str, Sequence[CacheFile]]) -> list[tuple[str, str, str, str]]:
    """Return for each file its model, what it is, the disk that it takes and its name."""
    return sorted(
        (file.model, _what(kind, file), format_bytes(file.disk_bytes), file.path.name)
        for kind, each in files.items()
        for file in each
    )


def _what(kind: str, file: CacheFile) -> str:
    if isinstance(file, LowFile):
        return f"low copies, {file.share:.0%}: {file.source}"
    if isinstance(file, KeptText):
        return f"KV cache of {file.num_tokens} tokens"
    return "trunk" if kind == "trunks" else "what drafts come from"


def cache_objects(files: Mapping[str, Sequence[CacheFile]]) -> dict[str, Any]:
    """Return the files, by kind, as JSON holds them."""
    return {
        kind: [{**asdict(file), "path": str(file.path)} for file in each]
        for kind, each in files.items()
    }
