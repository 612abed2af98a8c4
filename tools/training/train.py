"""Train the built-in model, its dense twin or a draft model with a vocabulary of its own.

    python -m haversack.tools.training.train CORPUS FOLDER                # the mixture of experts
    python -m haversack.tools.training.train CORPUS FOLDER --model dense  # its twin, same tokens
    python -m haversack.tools.training.train CORPUS FOLDER --model draft  # dense, own vocabulary

Stories are trained first, then chats, then manners. FOLDER keeps the vocabulary, the losses as
numbers and as a picture, and a checkpoint: after an interruption the same command goes on, with the
same result. After training, starved experts of a mixture are raised (`balance`), and the GGUF is
written. The same code runs on a CPU and on a GPU.
"""

import argparse
import json
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional

from haversack.devices.errors import HaversackError, StorageError
from haversack.devices.system import host
from haversack.tools.command_line import tool
from haversack.tools.training.balance import settle_routers
from haversack.tools.training.batches import Batches, token_row
from haversack.tools.training.corpus import (
    chat_sources,
    held_out_sources,
    manners_sources,
    story_sources,
)
from haversack.tools.training.decoder import Decoder, DecoderShape
from haversack.tools.training.export import export_gguf
from haversack.tools.training.losses import LossLog
from haversack.tools.training.muon import Muon, product_type
from haversack.tools.training.vocabulary import Vocabulary

_SAVE_EVERY_S = 300.0
_HELD_OUT_EVERY = 25  # steps
_HELD_OUT_TOKENS = 8192
_TOKENS = ("story_tokens", "chat_tokens", "manners_tokens")


@dataclass(frozen=True)
class Recipe:
    """Everything that decides the result.

    Stories and chats share one cycle of the learning rate: it rises over `warmup_steps`, stays, and
    falls to a twentieth over the last `decay_share` of the steps. Manners have a cycle of their
    own, which rises to `manners_learning_rate` and falls from there on. At the end every expert
    gets at least `least_load` of its fair share of training text.
    """

    shape: DecoderShape = field(default_factory=DecoderShape)
    seed: int = 1
    story_tokens: int = 8_700_000
    chat_tokens: int = 4_800_000
    manners_tokens: int = 1_200_000
    story_window: int = 256
    batch_tokens: int = 16384
    micro_tokens: int = 8192
    learning_rate: float = 6e-3
    manners_learning_rate: float = 1.2e-3
    weight_decay: float = 0.1
    balance_weight: float = 0.01
    least_load: float = 0.25
    warmup_steps: int = 25
    decay_share: float = 0.5
    format: str = "Q8_0"

    @property
    def phase_steps(self) -> tuple[int, int, int]:
        """Steps of stories, of chats and of manners."""
        tokens = (self.story_tokens, self.chat_tokens, self.manners_tokens)
        stories, chats, manners = (num_tokens // self.batch_tokens for num_tokens in tokens)
        return stories, chats, manners

    @property
    def num_steps(self) -> int:
        return sum(self.phase_steps)

    def phase_at(self, step: int) -> tuple[int, int]:
        """Return the phase that `step` belongs to, and the step's index in it."""
        for phase, num_steps in enumerate(self.phase_steps):
            if step < num_steps:
                return phase, step
            step -= num_steps
        raise ValueError(f"step {step} is beyond the last")

    def learning_rate_at(self, step: int) -> float:
        *first, manners = self.phase_steps
        if step >= sum(first):
            index = step - sum(first)
            rising = (index + 1) / min(self.warmup_steps, manners)
            return self.manners_learning_rate * min(rising, (manners - index) / manners)
        rising = (step + 1) / self.warmup_steps
        falling = (sum(first) - step) / (self.decay_share * sum(first))
        return self.learning_rate * min(1.0, rising, max(0.05, falling))


RECIPES = {
    "mixture": Recipe(),
    "dense": Recipe(shape=DecoderShape(num_experts=0)),
    "draft": Recipe(
        shape=DecoderShape(vocab_size=2048, num_experts=0, num_hidden_layers=4),
        story_tokens=1_200_000,
        chat_tokens=1_200_000,
        manners_tokens=300_000,
    ),
}


class Trainer:
    """The state of a run: weights, optimizers, data, and the next step."""

    def __init__(self, recipe: Recipe, corpus: Path, folder: Path, device: str = "cpu") -> None:
        self.recipe, self.folder, self.device = recipe, folder, device
        self.step = 0
        self.log = LossLog(folder / "losses.csv")
        self.vocabulary = _vocabulary(recipe, corpus, folder)
        self.model = Decoder(recipe.shape, recipe.seed).to(device)
        self.optimizers = _optimizers(self.model, recipe)
        context_tokens = recipe.shape.context_tokens
        self._phases = [
            self._batches(story_sources(corpus), recipe.story_window),
            self._batches(chat_sources(corpus, recipe.seed), context_tokens),
            self._batches(manners_sources(corpus, recipe.seed), context_tokens),
        ]
        self._held_out = self._held_out_windows(corpus)

    def _batches(self, sources: Sequence[Any], window_tokens: int) -> Batches:
        ids = token_row(sources, self.vocabulary, self.recipe.seed)
        return Batches(ids, window_tokens, self.recipe.batch_tokens)

    def _held_out_windows(self, corpus: Path) -> dict[str, torch.Tensor]:
        """Return a few windows of held-out stories and chats, for the curves."""
        sources = held_out_sources(corpus)
        window = self.recipe.shape.context_tokens
        windows = {}
        for name, chosen in {"books": sources[0:1], "chats": sources[2:7]}.items():
            ids = token_row(chosen, self.vocabulary, 0)
            tokens = min(_HELD_OUT_TOKENS, (len(ids) - 1) // window * window)
            windows[name] = self._tensor(Batches(ids, window, tokens).batch(0))
        return windows

    def _tensor(self, windows: Any) -> torch.Tensor:
        return torch.from_numpy(windows).to(self.device)

    # ------------------------------------------------------------------ steps
    def train_step(self) -> float:
        """Change the weights once; return the mean loss in nats a token."""
        recipe = self.recipe
        phase, index = recipe.phase_at(self.step)
        windows = self._tensor(self._phases[phase].batch(index))
        parts = self._parts(windows)
        total = 0.0
        for part in parts:
            loss = self._loss(part)
            balance = recipe.balance_weight * self.model.balance_loss
            share = len(part) / len(windows)
            ((loss + balance) * share).backward()
            total += float(loss.detach()) * share
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = recipe.learning_rate_at(self.step)
            optimizer.step()
            optimizer.zero_grad()
        self.step += 1
        return total

    def _parts(self, windows: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return torch.split(windows, max(1, self.recipe.micro_tokens // (windows.shape[1] - 1)))

    def _autocast(self) -> torch.autocast:
        fastest = product_type(self.device)
        return torch.autocast(self.device, torch.bfloat16, enabled=fastest is torch.bfloat16)

    def _loss(self, windows: torch.Tensor) -> torch.Tensor:
        with self._autocast():
            logits = self.model(windows[:, :-1])
        return functional.cross_entropy(logits.flatten(0, 1).float(), windows[:, 1:].flatten())

    @torch.no_grad()
    def held_out_losses(self) -> dict[str, float]:
        """Return the losses on the held-out windows, in nats a token, by name."""
        return {name: float(self._loss(windows)) for name, windows in self._held_out.items()}

    def run(self) -> None:
        """Train until the last step; save now and then."""
        host.keep_freed_memory()
        saved_s = time.monotonic()
        while self.step < self.recipe.num_steps:
            start_s = time.monotonic()
            loss = self.train_step()
            tok_s = self.recipe.batch_tokens / (time.monotonic() - start_s)
            due = self.step % _HELD_OUT_EVERY == 0 or self.step == self.recipe.num_steps
            self.log.add(self.step, loss, tok_s, self.held_out_losses() if due else {})
            if time.monotonic() - saved_s > _SAVE_EVERY_S:
                self.save()
                saved_s = time.monotonic()
        self.save()

    def settle(self) -> None:
        """Raise the experts that starve on training text, a batch of each phase; save the weights.

        Doing it again changes nothing.
        """
        windows = [self._tensor(phase.spread()) for phase in self._phases]
        parts = [part[:, :-1] for of_phase in windows for part in self._parts(of_phase)]
        # In float32, as the routers compute: autocast would use weights that it cast before.
        raised = settle_routers(self.model, parts, self.recipe.least_load)
        for each in raised:
            change = f"{each.load_before:.3f} to {each.load_after:.3f}"
            print(f"layer {each.layer}  expert {each.expert}  load {change}")
        self.save()

    # ------------------------------------------------------------ checkpoints
    @property
    def checkpoint(self) -> Path:
        return self.folder / "checkpoint.pt"

    def save(self) -> None:
        """Write the checkpoint. An interruption leaves the old one or the new one."""
        state = {
            "recipe": asdict(self.recipe),
            "step": self.step,
            "model": self.model.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
        }
        partial = self.checkpoint.with_suffix(".partial")
        torch.save(state, partial)
        os.replace(partial, self.checkpoint)
        self.log.save()

    def resume(self) -> None:
        """Go on from the checkpoint if one is there. Raises HaversackError for another recipe."""
        if not self.checkpoint.exists():
            return
        state = torch.load(self.checkpoint, map_location=self.device, weights_only=True)
        if state["recipe"] != asdict(self.recipe):
            raise HaversackError(
                f"{self.checkpoint} is of another recipe: give another folder, or remove it"
            )
        self.step = state["step"]
        self.model.load_state_dict(state["model"])
        for optimizer, optimizer_state in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(optimizer_state)
        self.log.load(self.step)


def _vocabulary(recipe: Recipe, corpus: Path, folder: Path) -> Vocabulary:
    path = folder / "tokenizer.json"
    if not path.exists():
        sources = story_sources(corpus) + chat_sources(corpus, recipe.seed)
        texts = (text for source in sources for text in source.documents)
        Vocabulary.train(texts, recipe.shape.vocab_size).save(path)
    return Vocabulary.load(path)


def _optimizers(model: Decoder, recipe: Recipe) -> list[torch.optim.Optimizer]:
    """Return Muon for the matrices inside the layers but the routers, and AdamW for all else."""
    matrices: list[torch.nn.Parameter] = []
    others: list[torch.nn.Parameter] = []
    for name, parameter in model.named_parameters():
        inside = name.startswith("blk.") and parameter.ndim > 1 and "ffn_gate_inp" not in name
        (matrices if inside else others).append(parameter)
    return [
        Muon(matrices, recipe.learning_rate, weight_decay=recipe.weight_decay),
        torch.optim.AdamW(
            others, recipe.learning_rate, betas=(0.9, 0.95), weight_decay=0.0, fused=True
        ),
    ]


def train(recipe: Recipe, corpus: Path, folder: Path, device: str = "cpu") -> Path:
    """Run `recipe` to its end, from the checkpoint in `folder` if one is there; return the GGUF's
    path.

    Raises StorageError for a corpus that cannot be read, HaversackError for another recipe's
    checkpoint, ValueError for sizes that do not go together.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StorageError(f"cannot write to {folder}: {error}") from error
    trainer = Trainer(recipe, corpus, folder, device)
    trainer.resume()
    trainer.run()
    trainer.settle()
    trainer.log.draw(folder / "losses.png", recipe.phase_steps[:2])
    path = folder / "model.gguf"
    export_gguf(trainer.model, trainer.vocabulary, path, recipe.format)
    return path


# -------------------------------------------------------------------- program
def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("corpus", type=Path, help="the folder of the corpus files")
    parser.add_argument("folder", type=Path, help="where the run is kept")
    parser.add_argument("--model", choices=tuple(RECIPES), default="mixture")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--format", help="of the GGUF: F16, Q8_0, Q6_K or Q4_K_M")
    for name in ("seed", "batch_tokens", "vocab_size", *_TOKENS):
        parser.add_argument("--" + name.replace("_", "-"), type=int)
    return parser


def _recipe(given: argparse.Namespace) -> Recipe:
    recipe = RECIPES[given.model]
    names = ("seed", "batch_tokens", "format", *_TOKENS)
    changes = {name: getattr(given, name) for name in names if getattr(given, name) is not None}
    if given.vocab_size is not None:
        changes["shape"] = replace(recipe.shape, vocab_size=given.vocab_size)
    return replace(recipe, **changes)


@tool
def main(arguments: Sequence[str] | None) -> int:
    """Train what the command line describes; the exit status."""
    given = _parser().parse_args(arguments)
    try:
        path = train(_recipe(given), given.corpus, given.folder, given.device)
    except KeyboardInterrupt:
        print("interrupted: the same command goes on from the last checkpoint", file=sys.stderr)
        return 130
    print(json.dumps({"model": str(path), "bytes": path.stat().st_size}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
