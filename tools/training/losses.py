"""The losses of a training run: a CSV that grows with the run, and a picture of it."""

import csv
from collections.abc import Sequence
from importlib import import_module
from itertools import accumulate
from pathlib import Path

_COLUMNS: list[str] = ["step", "train", "tok_s", "books", "chats"]


class LossLog:
    """A row for each step: its loss in nats a token, its speed, and now and then the held-out
    losses."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._rows: list[dict[str, str]] = []

    def add(self, step: int, train: float, tok_s: float, held_out: dict[str, float]) -> None:
        """Add a step, and print it."""
        row = {"step": str(step), "train": f"{train:.4f}", "tok_s": f"{tok_s:.0f}"}
        row |= {name: f"{loss:.4f}" for name, loss in held_out.items()}
        self._rows.append(row)
        print("  ".join(f"{name} {value}" for name, value in row.items()), flush=True)

    def save(self) -> None:
        """Write all rows."""
        with self._path.open("w", newline="") as file:
            writer = csv.DictWriter(file, _COLUMNS, restval="", lineterminator="\n")
            writer.writeheader()
            writer.writerows(self._rows)

    def load(self, last_step: int) -> None:
        """Read the rows of an interrupted run up to `last_step`."""
        with self._path.open(newline="") as file:
            self._rows = [row for row in csv.DictReader(file) if int(row["step"]) <= last_step]

    def draw(self, path: Path, phase_steps: Sequence[int]) -> None:
        """Draw the losses; lines mark where chats and manners begin."""
        matplotlib = import_module("matplotlib")
        matplotlib.use("agg")
        figure, axes = import_module("matplotlib.pyplot").subplots(figsize=(8, 4.5))
        for name in ("train", "books", "chats"):
            points = [(int(row["step"]), float(row[name])) for row in self._rows if row.get(name)]
            label = name if name == "train" else f"held-out {name}"
            axes.plot(*zip(*points, strict=True), label=label, linewidth=1)
        for begin in accumulate(phase_steps):
            axes.axvline(begin, color="grey", linestyle=":")
        axes.set(xlabel="step", ylabel="loss, nats a token", ylim=(1.5, 6))
        axes.legend()
        figure.savefig(path, dpi=100, bbox_inches="tight")
