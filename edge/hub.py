"""Models by name: GGUF files of the Hugging Face hub, in the cache that other programs share.

    org/repo             the only model of that repository, or its Q4_K_M
    org/repo:Q5_K_M      the one whose file name has this
    org/repo/name.gguf   this file, or the split model that it is a part of

All access is through huggingface_hub: its cache, tokens, mirrors (HF_ENDPOINT), progress bars and
HF_HUB_OFFLINE work as its documentation says. What is in the cache is used without asking the hub.
"""

import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

from haversack.devices.errors import ModelFileError
from haversack.devices.ggml import GgufHeader
from haversack.devices.units import format_bytes
from haversack.quant.gguf import PART_NAME, ModelGeometry, read_geometry

_REPO = r"\w[\w.-]*/\w[\w.-]*"
_NAME = re.compile(rf"({_REPO})(?:/((?:[\w.-]+/)*[\w.-]+\.gguf)|:([\w.-]+))?", re.ASCII)
_DEFAULT_QUANT = "Q4_K_M"
_HUB_TIMEOUT_S = 10
_FIRST_HEADER_BYTES, _MOST_HEADER_BYTES = 8 << 20, 512 << 20


class HubName(NamedTuple):
    """A model on the hub: `quant` is a part of its file's name, `file` the whole of it."""

    repo: str
    file: str | None = None
    quant: str | None = None

    def __str__(self) -> str:
        file = f"/{self.file}" if self.file else ""
        return self.repo + file + (f":{self.quant}" if self.quant else "")


class HubFile(NamedTuple):
    """A file of a repository, by its path there, and its bytes."""

    path: str
    num_bytes: int


class CachedModel(NamedTuple):
    """A model of the hub that is in the cache: its first file and all of its bytes."""

    name: HubName
    path: Path
    num_bytes: int


def name_of(model: str | Path) -> HubName | None:
    """Return the name on the hub that `model` is, None if it is a path: of a file or folder that is
    there, or of one in a folder that is there."""
    text = model.as_posix() if isinstance(model, Path) else model
    match = _NAME.fullmatch(text)
    repo_only = match is not None and match[2] is None
    if match is None or (repo_only and match[1].endswith(".gguf")):
        return None
    if os.path.lexists(text) or (not repo_only and os.path.isdir(text.partition("/")[0])):
        return None
    return HubName(match[1], match[2], match[3])


def local_path(model: str | Path) -> Path:
    """Return the path of a model: `model` itself, or of the first file of the model of that name on
    the hub, which is downloaded if it is not in the cache. Raises ModelFileError."""
    if model == "":
        raise ModelFileError("the model's name is empty: give a GGUF file, or a name on the hub")
    name = name_of(model)
    if name is None:
        return Path(model)
    return cached(name) or pull(name)


def cached(name: HubName) -> Path | None:
    """Return the path of the first file of a model that is in the cache with all its files."""
    for _, files in _cached_files(name.repo):
        try:
            return files[choose(name, [HubFile(path, 0) for path in files])[0].path]
        except ModelFileError:
            continue
    return None


def pull(name: HubName) -> Path:
    """Download a model, or what has changed of it. Return the path of its first file. Raises
    ModelFileError if it cannot be had."""
    from huggingface_hub import hf_hub_download

    with _told(name):
        files = choose(name, _hub_files(name.repo))
        first, *_ = [Path(hf_hub_download(name.repo, file.path)) for file in files]
        return first


def choose(name: HubName, files: Sequence[HubFile]) -> list[HubFile]:
    """Return the files of the model that `name` means, of a repository's `files`: all parts, in
    order. Raises ModelFileError, which names the choices, if there is none or more than one."""
    models = _models(files)
    if name.file is not None:
        found = [parts for parts in models.values() if name.file in [part.path for part in parts]]
    else:
        found = _with_quant(models, name.quant) if name.quant else list(models.values())
        if name.quant is None and len(found) > 1:
            found = _with_quant(models, _DEFAULT_QUANT)
    if len(found) == 1:
        return found[0]
    what = "no model" if not found else f"{len(found)} models"
    choices = ", ".join(stem.rpartition("/")[2] for stem in models) or "no whole GGUF model"
    raise ModelFileError(
        f"{name} is {what}: {name.repo} has {choices}; give {name.repo}:QUANT with a part of one of"
        " these names"
    )


def _models(files: Sequence[HubFile]) -> dict[str, list[HubFile]]:
    """Return the files of each model by its name without the number of a part. Models that lack
    parts, and projectors of pictures, are left out."""
    found: dict[str, list[HubFile]] = {}
    for file in sorted(files):
        if file.path.endswith(".gguf") and "mmproj" not in file.path.lower():
            part = PART_NAME.fullmatch(file.path)
            found.setdefault(part[1] if part else file.path[: -len(".gguf")], []).append(file)
    return {
        stem: parts
        for stem, parts in found.items()
        if (part := PART_NAME.fullmatch(parts[0].path)) is None or int(part[3]) == len(parts)
    }


def _with_quant(models: dict[str, list[HubFile]], quant: str) -> list[list[HubFile]]:
    """Return the models that have `quant` between other characters than letters and digits. Of a
    folder and a file it is enough if one has it."""
    pattern = re.compile(rf"(?<![a-z0-9]){re.escape(quant.lower())}(?![a-z0-9_])")
    return [parts for stem, parts in models.items() if pattern.search(stem.lower())]


# ----------------------------------------------------------------------- cache
def list_models() -> list[CachedModel]:
    """Return all whole models in the hub's cache, by name."""
    found: dict[str, CachedModel] = {}
    for repo, files in _cached_files():
        sizes = [HubFile(path, file.stat().st_size) for path, file in files.items()]
        for parts in _models(sizes).values():
            name = HubName(repo, parts[0].path)
            num_bytes = sum(part.num_bytes for part in parts)
            found.setdefault(str(name), CachedModel(name, files[parts[0].path], num_bytes))
    return [found[name] for name in sorted(found)]


def remove(name: HubName) -> int:
    """Remove a model's files from the cache; return how many bytes that freed. Raises
    ModelFileError if it is not there."""
    freed_bytes = 0
    for _, files in _cached_files(name.repo):
        try:
            parts = choose(name, [HubFile(path, 0) for path in files])
        except ModelFileError:
            continue
        for part in parts:
            link = files[part.path]
            blob = link.resolve()
            freed_bytes += blob.stat().st_size if blob.exists() else 0
            for file in {link, blob}:
                file.unlink(missing_ok=True)
    if not freed_bytes:
        raise ModelFileError(f"{name} is not in the cache: `haversack ls` shows what is there")
    return freed_bytes


def _cached_files(repo: str | None = None) -> Iterator[tuple[str, dict[str, Path]]]:
    """Yield the GGUF files, by their paths in the repository, of every revision in the cache, the
    newest first."""
    from huggingface_hub import CacheNotFound, scan_cache_dir

    try:
        repos = scan_cache_dir().repos
    except CacheNotFound:
        return
    for found in sorted(repos, key=lambda each: each.repo_id):
        if found.repo_type != "model" or repo not in (None, found.repo_id):
            continue
        for revision in sorted(found.revisions, key=lambda one: -one.last_modified):
            paths = [file.file_path for file in revision.files if file.file_path.exists()]
            files = {path.relative_to(revision.snapshot_path).as_posix(): path for path in paths}
            yield found.repo_id, {k: v for k, v in files.items() if k.endswith(".gguf")}


# ------------------------------------------------------------------------- hub
@contextmanager
def remote_geometry(name: HubName) -> Iterator[ModelGeometry]:
    """Yield the geometry of a model that was not downloaded, for a plan inside the block. Only the
    headers of its files are read. Raises ModelFileError."""
    with TemporaryDirectory(prefix="haversack-header-") as folder:
        with _told(name):
            paths = [
                _fetch_header(name.repo, file, Path(folder))
                for file in choose(name, _hub_files(name.repo))
            ]
        yield read_geometry(paths[0], header_alone=True)


def _hub_files(repo: str) -> list[HubFile]:
    from huggingface_hub import HfApi

    listed = HfApi().model_info(repo, files_metadata=True, timeout=_HUB_TIMEOUT_S).siblings or []
    return [HubFile(one.rfilename, one.size or 0) for one in listed]


def _fetch_header(repo: str, file: HubFile, folder: Path) -> Path:
    """Write the first bytes of a file, up to its tensors, and give it its full length."""
    from huggingface_hub import get_hf_file_metadata, get_session, hf_hub_url
    from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined]

    url = hf_hub_url(repo, file.path)
    where = get_hf_file_metadata(url).location
    token = build_hf_headers() if where == url else {}  # another server must not see it
    path, num_bytes = folder / Path(file.path).name, _FIRST_HEADER_BYTES
    while True:
        answer = get_session().get(where, headers={**token, "Range": f"bytes=0-{num_bytes - 1}"})
        answer.raise_for_status()
        path.write_bytes(answer.content[:num_bytes])
        try:
            GgufHeader(path).close()
        except ModelFileError:
            num_bytes *= 2
            if num_bytes > min(2 * file.num_bytes, _MOST_HEADER_BYTES):
                raise
            continue
        os.truncate(path, file.num_bytes)
        return path


@contextmanager
def _told(name: HubName) -> Iterator[None]:
    """Turn the errors of the hub, of the network and of the disk into ModelFileError, which says
    what to do."""
    from huggingface_hub import errors

    try:
        yield
    except ModelFileError:
        raise
    except errors.GatedRepoError as error:
        why = f"accept its terms at https://huggingface.co/{name.repo} and set HF_TOKEN"
        raise ModelFileError(f"{name} is for registered users: {why}") from error
    except errors.RepositoryNotFoundError as error:
        raise ModelFileError(
            f"{name} is no file here and no model on the hub: check the name; for a private one set"
            " HF_TOKEN"
        ) from error
    except errors.OfflineModeIsEnabled as error:
        raise ModelFileError(
            f"{name} is no file here and not in the cache, and the hub is not asked because"
            " HF_HUB_OFFLINE is set: unset it, or give a file"
        ) from error
    except Exception as error:
        text = " ".join(str(error).split())
        if _is_of_network(error):
            raise ModelFileError(
                f"{name} is no file here, and the hub cannot be reached ({text}): check the"
                " network, or give a file"
            ) from error
        if isinstance(error, OSError):
            raise ModelFileError(
                f"{name} cannot be written ({text}): make room, or set HF_HOME to another folder"
            ) from error
        if isinstance(error, (ValueError, LookupError, TypeError, AttributeError)):
            raise ModelFileError(
                f"{name} is no file here, and what answers in place of the hub is none ({text}):"
                " check whether the network asks for a login, or give a file"
            ) from error
        raise


def _is_of_network(error: BaseException) -> bool:
    """Whether an error comes from the HTTP library that huggingface_hub uses, whichever it is."""
    return any(
        kind.__module__.split(".")[0] in ("httpx", "httpx2", "requests", "huggingface_hub")
        for kind in type(error).__mro__
    )


def described(name: HubName, geometry: ModelGeometry) -> str:
    """Return a line about a model that is on the hub alone."""
    files = f"{len(geometry.paths)} files, " if len(geometry.paths) > 1 else ""
    num_bytes = sum(path.stat().st_size for path in geometry.paths)
    return f"{name} is not downloaded yet: {files}{format_bytes(num_bytes)}"
