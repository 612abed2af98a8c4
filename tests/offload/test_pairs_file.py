"""What was learnt of two vocabularies is kept for them alone."""

from pathlib import Path

import pytest

from haversack.cache.cross_vocab import Pair, PairStore
from haversack.offload.pairs_file import read_pairs, save_pairs
from haversack.quant.trunk import list_lone_ngrams, pairs_path, remove_trunks

TRUNK = "0123456789ab-0123456789abcdef0123.gguf"
NUM_TOKENS = (10, 10)


def read(trunk: Path, vocabularies: str) -> int:
    pairs = PairStore()
    read_pairs(trunk, vocabularies, pairs, NUM_TOKENS)
    return len(pairs)


def test_pairs_are_used_for_their_model_and_vocabularies_alone(tmp_path: Path) -> None:
    trunk, pairs = tmp_path / TRUNK, PairStore()
    save_pairs(trunk, "one", pairs)
    assert not list(tmp_path.iterdir())
    pairs.learn(Pair((1, 2), (3,)))
    save_pairs(trunk, "one", pairs)
    assert read(trunk, "one") == 1
    assert read(trunk, "other") == read(trunk.with_stem(trunk.stem[::-1]), "one") == 0


def test_a_damaged_file_and_one_of_others_are_not_used(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    trunk, pairs = tmp_path / TRUNK, PairStore()
    pairs.learn(Pair((1, 2), (3,)))
    save_pairs(trunk, "one", pairs)
    path = pairs_path(trunk, "one")
    pairs_path(trunk, "other").write_bytes(path.read_bytes())
    path.write_bytes(path.read_bytes()[:-1])
    assert read(trunk, "one") == read(trunk, "other") == 0
    assert caplog.text.count("pairs are learnt anew") == 2


def test_the_files_are_listed_and_removed_with_the_others(tmp_path: Path) -> None:
    pairs = PairStore()
    pairs.learn(Pair((1, 2), (3,)))
    save_pairs(tmp_path / TRUNK, "one", pairs)
    assert [each.model for each in list_lone_ngrams(tmp_path)] == ["a model and its drafter"]
    remove_trunks(tmp_path)
    assert not list(tmp_path.glob("*.pairs"))
