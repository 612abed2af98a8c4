"""Which guesses are worth a read: how often those like them turned out right."""

from typing import Any

import numpy as np
import numpy.typing as npt

DEPTH = 3  # how many layers ahead a choice is foreseen
LEAST_CHANCE = 0.5  # what a right guess saves is about what a wrong one costs
MEMORY = 64  # a chance is an average over about so many guesses
QUIET_TOKENS = 16  # a layer that missed nothing for so long is not asked what it will choose


class Odds:
    """The chance that an expert without a slot is chosen, by how many layers ahead that was said
    and by its rank among those said to be likeliest.

    All that were said count, also those that were not worth a read, so it needs no trials. It
    begins with trust. Experts that stay in slots are those often used: of the others even a good
    router's lowest ranks are chosen rarely, and reading them costs more than it brings.

    Layers are counted in the order they run.
    """

    def __init__(self, num_ranks: int, num_layers: int) -> None:
        self.chances: npt.NDArray[np.float64] = np.ones((DEPTH, num_ranks))
        self.quiet: npt.NDArray[np.int64] = np.zeros(num_layers, np.int64)  # tokens without a miss

    def books(self) -> dict[str, Any]:
        """All there is to know, by name; the arrays are shared."""
        return {
            "chances": self.chances,
            "quiet": self.quiet,
            "depth": DEPTH,
            "num_ranks": self.chances.shape[1],
            "least_chance": LEAST_CHANCE,
            "memory": float(MEMORY),
            "quiet_tokens": QUIET_TOKENS,
        }

    def are_worth(self, depth: int, ranks: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
        """Whether experts of `ranks` (from 0), foreseen `depth` layers ahead, are to be read."""
        worth: npt.NDArray[np.bool_] = self.chances[depth - 1, ranks] >= LEAST_CHANCE
        return worth

    def note(self, depth: int, rank: int, right: bool) -> None:
        """One that was foreseen was chosen, or was not."""
        chance = self.chances[depth - 1, rank]
        self.chances[depth - 1, rank] = chance + (right - chance) / MEMORY

    def may_miss(self, layer: int) -> bool:
        """Whether a layer is worth foreseeing: that takes as long as a small product, or a tenth of
        a millisecond out of memory."""
        return bool(self.quiet[layer] < QUIET_TOKENS)

    def note_token(self, layer: int, missed: bool) -> None:
        """A layer chose, and `missed` some expert, be it one that was foreseen, or did not."""
        self.quiet[layer] = 0 if missed else self.quiet[layer] + 1
