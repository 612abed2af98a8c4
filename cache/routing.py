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

    @classmethod
    def of(cls, num_used: int, bias: float) -> "Leaning":
        """Return the rule for routers that choose `num_used` experts: a quarter of them is kept, at
        least one."""
        return cls(bias, max(1, num_used // 4))


def leaning_choice(
    scores: npt.NDArray[np.float32],
    resident: npt.NDArray[np.bool_],
    num_used: int,
    leaning: Leaning,
) -> npt.NDArray[np.int32]:
    """Return the K = `num_used` experts chosen by their `scores` (E,), which the router chooses
    by: the highest score first, of equal scores the lowest id. `resident` (E,) tells which experts
    have a copy. A score of minus infinity says that an expert may not be chosen; where one is not a
    number, the router decides alone."""
    ranked = np.argsort(-scores, kind="stable").astype(np.int32)
    finite = scores[np.isfinite(scores)]
    if np.isnan(scores).any() or not finite.size:
        return ranked[:num_used]
    raised = scores + resident * (np.float32(leaning.bias) * (finite.max() - finite.min()))
    num_kept = min(leaning.num_kept, num_used)
    others = ranked[num_kept:]
    leaned = others[np.argsort(-raised[others], kind="stable")]
    chosen = [*ranked[:num_kept], *leaned[: num_used - num_kept]]
    return ranked[np.isin(ranked, chosen)]
