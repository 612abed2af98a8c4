"""Routing toward the cache: a router's choice that leans to experts with a copy in a slot.

Only which experts are chosen changes, never their weights, and the experts that the router ranks
first stay chosen (cache-conditional routing, arXiv 2412.00099). Scores and bias are float32, so
that the engine, in C++, chooses the same. Axis letters: E experts of a layer, K experts chosen.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True)
class Leaning:
    """How far a choice leans: experts with a copy are ranked as if their score were higher by
    `bias` of the range of all scores. The `num_kept` experts ranked first stay, whatever lies in
    slots."""

    bias: float = 0.0
    num_kept: int = 1

    def __post_init__(self) -> None:
        if not 0 <= self.bias <= 1 or self.num_kept < 1:
            raise ValueError(
                f"a bias is 0 to 1 and at least one expert is kept, not {self.bias} and"
                f" {self.num_kept}"
            )


def leaning_choice(
    scores: npt.NDArray[np.float32],
    resident: npt.NDArray[np.bool_],
    num_used: int,
    leaning: Leaning,
) -> npt.NDArray[np.int32]:
    """Return the K = `num_used` experts chosen by their `scores` (E,), which the router chooses
    by: the highest score first, of equal scores the lowest id. `resident` (E,) tells which experts
    have a copy."""
    ranked = np.argsort(-scores, kind="stable")
    kept = ranked[: min(leaning.num_kept, num_used)]
    raised = scores + resident * (np.float32(leaning.bias) * (scores.max() - scores.min()))
    raised[kept] = np.inf
    chosen = np.argsort(-raised, kind="stable")[:num_used]
    return ranked[np.isin(ranked, chosen)].astype(np.int32)
