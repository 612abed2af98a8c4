"""Texts that wait on disk are brought back with the same bits, and leave where there is no room."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from haversack import edge
from haversack.devices.errors import PromptError, UnitError
from haversack.edge.cache_dir import kv_folder
from haversack.edge.kv_disk import list_texts, remove_texts

TinyModel = Callable[..., Path]
FOX = "Once upon a time, there was a little fox who lived in the deep forest with his mom and dad. "
KING = "The old king had three daughters, and they all loved to sing and to play in the garden. "
LILY = "Lily had a cat named Tim, who liked to run up and down the hill all day and to play. "

BATCH = 32


def opened(
    path: Path, folder: Path, kv_disk: str | None = "1GiB", sequences: int = 1
) -> edge.Model:
    options = edge.LoadOptions(
        cache_dir=folder, warm_start=False, kv_disk=kv_disk, sequences=sequences
    )
    return edge.load(path, ram="2GiB", ctx=256, threads=1, options=options)


def told(model: edge.Model, prompt: str, seed: int = -1) -> tuple[str, int]:
    """The text after a prompt, and how many tokens of the prompt were computed for it."""
    generation = model.generate(prompt, 8, temperature=0, seed=seed)
    text = generation.text
    assert generation.stats is not None
    model.check_integrity()
    return text, generation.stats.prompt_tokens


def test_a_text_comes_back_after_another_one_and_after_a_restart(
    known_answer_model: Path, tmp_path: Path
) -> None:
    with opened(known_answer_model, tmp_path, kv_disk=None) as model:
        begun, num_tokens = told(model, FOX)
        expected, num_new = told(model, FOX + begun + " And")
        assert num_new < num_tokens / 2
    with opened(known_answer_model, tmp_path) as model:
        assert told(model, FOX)[0] == begun
        told(model, KING)
        assert told(model, FOX + begun + " And") == (expected, num_new)
    with opened(known_answer_model, tmp_path) as model:
        assert told(model, FOX + begun + " And")[0] == expected
        assert told(model, KING)[1] == 1  # all but the last token, whose logits are wanted
    assert len(list_texts(kv_folder(tmp_path))) == 2  # each is kept once, and no beginning of it


def test_a_seed_takes_whole_batches_alone(known_answer_model: Path, tmp_path: Path) -> None:
    """Its bits are those of a new context."""
    options = edge.LoadOptions(cache_dir=tmp_path, warm_start=False, kv_disk="1GiB", batch=BATCH)
    prompts, computed, lengths = [FOX + KING + LILY, FOX + KING], list[int](), list[int]()
    expected = ["", ""]
    for _ in range(2):
        with edge.load(known_answer_model, "2GiB", 256, threads=1, options=options) as model:
            lengths = [len(model.tokenize(prompt)) for prompt in prompts]
            for number, prompt in enumerate(prompts):
                text, num_tokens = told(model, prompt, seed=1)
                computed.append(num_tokens)
                assert text == (expected[number] or text)
                expected[number] = text
    from_batch = [length - (length - 1) // BATCH * BATCH for length in lengths]
    assert computed == [lengths[0], *from_batch[1:], *from_batch]


def test_the_least_recently_used_text_leaves(known_answer_model: Path, tmp_path: Path) -> None:
    folder = kv_folder(tmp_path)
    with opened(known_answer_model, tmp_path) as model:
        told(model, FOX)
        told(model, KING)
    first, second = list_texts(folder)
    for text, when in ((first, 1), (second, 2)):
        os.utime(text.path, (when, when))
    limit_bytes = first.disk_bytes + second.disk_bytes + first.disk_bytes // 2
    with opened(known_answer_model, tmp_path, str(limit_bytes) + "B") as model:
        told(model, LILY)
    left = {text.path for text in list_texts(folder)}
    assert len(left) == 2 and first.path not in left and second.path in left
    with opened(known_answer_model, tmp_path, "10KiB") as model:  # holds none: nothing is removed
        told(model, LILY + FOX)
    assert {text.path for text in list_texts(folder)} == left


def test_a_damaged_text_is_computed_again(
    known_answer_model: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with opened(known_answer_model, tmp_path) as model:
        expected = told(model, FOX)
    (text,) = list_texts(kv_folder(tmp_path))
    data = bytearray(text.path.read_bytes())
    data[-100] ^= 1
    text.path.write_bytes(data)
    with opened(known_answer_model, tmp_path) as model:
        assert told(model, FOX) == expected
    assert "is damaged: its checksum is wrong; its text is computed again" in caplog.text


def test_another_model_or_setting_has_texts_of_its_own(
    known_answer_model: Path, tiny_model: TinyModel, tmp_path: Path
) -> None:
    with opened(known_answer_model, tmp_path) as model:
        _, num_tokens = told(model, FOX)
    options = edge.LoadOptions(cache_dir=tmp_path, warm_start=False, kv_disk="1GiB")
    with edge.load(known_answer_model, "2GiB", 256, threads=2, options=options) as model:
        assert told(model, FOX)[1] == num_tokens
    assert len(list_texts(kv_folder(tmp_path))) == 2
    with pytest.raises(PromptError, match=r"--kv-disk keeps nothing of this model: .* a window"):
        opened(tiny_model("gpt-oss"), tmp_path, sequences=2)
    with pytest.raises(UnitError):
        edge.LoadOptions(kv_disk="many")


def test_logits_never_come_from_the_disk(known_answer_model: Path, tmp_path: Path) -> None:
    with opened(known_answer_model, tmp_path) as model:
        tokens = model.tokenize(FOX)
        told(model, FOX + "He")
        before = model.stats().prompt_tokens
        model.logits(tokens, len(tokens))
        assert model.stats().prompt_tokens - before == len(tokens)
        assert len(list_texts(kv_folder(tmp_path))) == 1  # what its sequence lost


def test_texts_are_removed(known_answer_model: Path, tmp_path: Path) -> None:
    folder = kv_folder(tmp_path)
    with opened(known_answer_model, tmp_path) as model:
        told(model, FOX)
    (text,) = list_texts(folder)
    assert text.model.startswith("stories260k-moe.gguf (") and text.num_tokens > 20
    (folder / f"{text.path.name}.abcd1234").write_bytes(b"x" * 10)  # left by a killed process
    (folder / "mine.txt").write_text("mine")
    assert remove_texts(folder) == text.disk_bytes + 10
    assert os.listdir(folder) == ["mine.txt"]


def test_what_a_killed_process_left_goes_at_the_next_start(
    known_answer_model: Path, tmp_path: Path
) -> None:
    folder = kv_folder(tmp_path)
    with opened(known_answer_model, tmp_path) as model:
        told(model, FOX)
    (text,) = list_texts(folder)
    left = folder / f"{text.path.name}.abcd1234.part"
    left.write_bytes(b"x" * 10)
    os.utime(left, (1, 1))
    assert len(list_texts(folder)) == 2
    with opened(known_answer_model, tmp_path):
        assert not left.exists() and text.path.exists()
