"""Training: the command from corpus to GGUF on a few steps, and runs that were interrupted."""

import csv
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from haversack import edge
from haversack.devices.errors import HaversackError, StorageError
from haversack.tools.training import train as training
from haversack.tools.training.decoder import DecoderShape
from haversack.tools.training.export import load_gguf, load_run
from haversack.tools.training.train import RECIPES, Recipe, Trainer, train

CORPUS = Path(__file__).parents[2] / "data" / "corpus"
SMALL = Recipe(
    shape=DecoderShape(
        vocab_size=512, hidden_size=64, num_hidden_layers=2, num_experts=8, moe_intermediate_size=32
    ),
    story_tokens=4 * 2048,
    chat_tokens=4 * 2048,
    manners_tokens=2 * 2048,
    batch_tokens=2048,
    micro_tokens=1024,
    warmup_steps=2,
)


def weights(trainer: Trainer) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in trainer.model.state_dict().items()}


def equal(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(first[name], second[name]) for name in first)


def some_steps(trainer: Trainer, count: int) -> list[float]:
    return [trainer.train_step() for _ in range(count)]


@pytest.mark.slow
def test_one_command_from_the_corpus_to_a_model_that_talks(tmp_path: Path) -> None:
    """The command that made the built-in model, on a few steps."""
    few = "--story-tokens 8192 --chat-tokens 4096 --manners-tokens 4096 --batch-tokens 4096".split()
    few += ["--vocab-size", "512"]
    command = [sys.executable, "-m", "haversack.tools.training.train", CORPUS, tmp_path, *few]
    patient = os.environ | {"OMP_WAIT_POLICY": "passive"}  # its threads do not spin beside others
    result = subprocess.run(command, capture_output=True, text=True, timeout=850, env=patient)
    assert (result.returncode, result.stderr) == (0, "")
    assert json.loads(result.stdout.splitlines()[-1])["bytes"] > 50e6
    with (tmp_path / "losses.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["step"] for row in rows] == ["1", "2", "3", "4"]
    assert float(rows[0]["train"]) > float(rows[-1]["train"]) and rows[-1]["books"]
    assert (tmp_path / "losses.png").read_bytes().startswith(b"\x89PNG")
    with edge.load(tmp_path / "model.gguf", ram="1TiB", threads=1) as model:
        assert model.plan.architecture == "qwen3moe"
        assert model.chat([{"role": "user", "content": "Hello"}], max_tokens=5, seed=1).text


def test_losses_fall(tmp_path: Path) -> None:
    trainer = Trainer(SMALL, CORPUS, tmp_path)
    before = trainer.held_out_losses()
    losses = some_steps(trainer, SMALL.num_steps)
    assert losses[-1] < losses[0] - 0.5
    assert all(after < before[name] - 0.5 for name, after in trainer.held_out_losses().items())


def test_an_interrupted_run_ends_with_the_same_weights(tmp_path: Path) -> None:
    for name in ("whole", "cut"):
        (tmp_path / name).mkdir()
    whole = Trainer(SMALL, CORPUS, tmp_path / "whole")
    some_steps(whole, SMALL.num_steps)
    cut = Trainer(SMALL, CORPUS, tmp_path / "cut")
    some_steps(cut, 3)
    cut.save()
    some_steps(cut, 2)  # lost: the checkpoint is of step 3
    again = Trainer(SMALL, CORPUS, tmp_path / "cut")
    again.resume()
    assert again.step == 3
    some_steps(again, SMALL.num_steps - 3)
    assert equal(weights(whole), weights(again))


def test_the_file_and_the_checkpoint_have_no_starved_expert(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A share that some experts do not have after so few steps; the same command again changes
    nothing, not even then."""
    few = {"story_tokens": 2048, "chat_tokens": 2048, "manners_tokens": 2048}
    recipe = replace(SMALL, least_load=0.8, **few)
    path = train(recipe, CORPUS, tmp_path)
    assert " load 0." in capsys.readouterr().out
    written = path.read_bytes()
    router = "blk.1.ffn_gate_inp"
    (of_file, _), (of_run, _) = load_gguf(path), load_run(tmp_path)
    assert torch.equal(of_file.get_parameter(router), of_run.get_parameter(router))
    assert train(recipe, CORPUS, tmp_path).read_bytes() == written
    assert " load 0." not in capsys.readouterr().out


def test_equal_seeds_give_equal_weights(tmp_path: Path) -> None:
    def trained(seed: int) -> dict[str, torch.Tensor]:
        trainer = Trainer(replace(SMALL, seed=seed), CORPUS, tmp_path)
        some_steps(trainer, 2)
        return weights(trainer)

    first = trained(1)
    assert equal(first, trained(1))
    assert not equal(first, trained(2))


def test_parts_of_a_batch_add_up_to_it(tmp_path: Path) -> None:
    """Each part balances its own load, so without that loss the weights agree but for rounding."""
    unbalanced = replace(SMALL, balance_weight=0.0)
    whole = Trainer(replace(unbalanced, micro_tokens=2048), CORPUS, tmp_path)
    parts = Trainer(replace(unbalanced, micro_tokens=512), CORPUS, tmp_path)
    assert whole.train_step() == pytest.approx(parts.train_step(), rel=1e-3)


def test_stories_come_first_then_chats_then_manners() -> None:
    assert (SMALL.phase_steps, SMALL.num_steps) == ((4, 4, 2), 10)
    phases = [SMALL.phase_at(step) for step in range(10)]
    assert phases == [(0, i) for i in range(4)] + [(1, i) for i in range(4)] + [(2, 0), (2, 1)]


def test_the_learning_rate_rises_stays_and_falls() -> None:
    recipe = RECIPES["mixture"]
    rates = [recipe.learning_rate_at(step) for step in range(recipe.num_steps)]
    manners = recipe.num_steps - recipe.phase_steps[2]
    assert rates[0] == pytest.approx(recipe.learning_rate / recipe.warmup_steps)
    assert max(rates) == recipe.learning_rate == rates[manners // 3]
    assert rates[manners - 1] == pytest.approx(recipe.learning_rate * 0.05)
    num_steps = recipe.phase_steps[2]
    peak = num_steps / (num_steps + recipe.warmup_steps)  # where the rise meets the fall
    assert max(rates[manners:]) == pytest.approx(peak * recipe.manners_learning_rate, rel=0.02)
    assert rates[-1] == pytest.approx(recipe.manners_learning_rate / num_steps)
    assert RECIPES["dense"] == replace(recipe, shape=RECIPES["dense"].shape)  # the same tokens


def test_another_recipes_checkpoint_is_refused(tmp_path: Path) -> None:
    trainer = Trainer(SMALL, CORPUS, tmp_path)
    trainer.save()
    with pytest.raises(HaversackError, match="another recipe: give another folder"):
        train(replace(SMALL, learning_rate=1.0), CORPUS, tmp_path)


def test_wrong_paths_and_numbers_are_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert training.main([str(tmp_path / "nowhere"), str(tmp_path / "run")]) == 2
    assert "give the folder of the corpus" in capsys.readouterr().err
    options = ["--vocab-size", "512", "--batch-tokens", "10000000", "--story-tokens", "1"]
    assert training.main([str(CORPUS), str(tmp_path / "run"), *options]) == 2
    assert "too few for a batch of 10000000" in capsys.readouterr().err
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match="cannot write to"):
        train(SMALL, CORPUS, tmp_path / "file" / "run")
