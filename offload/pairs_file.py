"""The file of learnt pairs: runs of tokens of a model and of its drafter that have the same text,
kept from one run to the next beside the model's trunk file, or where that would lie. Each pair of
vocabularies has a file of its own; `offload/kept_file.py` puts a hash before what is kept.
"""

import logging
from pathlib import Path

from haversack.cache.cross_vocab import PairStore
from haversack.offload.kept_file import read_kept, write_kept
from haversack.quant.trunk import pairs_path

_log = logging.getLogger("haversack.pairs")


def read_pairs(
    trunk: Path, vocabularies: str, pairs: PairStore, num_tokens: tuple[int, int]
) -> None:
    """Have `pairs` learn what was saved for these `vocabularies`, a hash of both. `num_tokens` are
    those of the drafter and of the model. An unusable file is logged and not used."""
    path = pairs_path(trunk, vocabularies)
    try:
        pairs.read(read_kept(path, trunk, _form(vocabularies)), *num_tokens)
    except FileNotFoundError:
        return
    except (OSError, ValueError) as error:
        _log.warning("cannot use %s: %s; pairs are learnt anew", path, error)


def save_pairs(trunk: Path, vocabularies: str, pairs: PairStore) -> None:
    """Save the pairs, whole or not at all. A failure is logged. None are not saved."""
    if not len(pairs):
        return
    path = pairs_path(trunk, vocabularies)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_kept(path, trunk, _form(vocabularies), pairs.to_bytes())
    except OSError as error:
        _log.warning("cannot save learnt pairs to %s: %s", path, error)


def _form(vocabularies: str) -> str:
    return f"pairs 1 {vocabularies}"
