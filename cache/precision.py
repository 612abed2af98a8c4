"""The rule of mixed precision: the level at which an expert is read that has no copy in a slot.

An expert's score is the share of a row's router weight that ranks above it, 0 for the first: the
larger, the less the expert matters for this row (HOBBIT, arXiv 2411.01433, section 3.2). Up to
`Thresholds.low` it is wanted HIGH, up to `Thresholds.skip` LOW, above it SKIP, which reads nothing.

The level is what an expert is worth if it is missing. A HIGH copy in a slot serves every wish, a
LOW copy those for LOW and SKIP. Nothing is taken away from an expert that is there.

Weights, scores and thresholds are compared in float32, and sums run in the order of the ranks, so
that the engine, in C++, comes to the same levels to the bit. Axis letters: T rows of a pass, K
experts chosen for a row.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

HIGH, LOW, SKIP = 0, 1, 2

Weights = npt.NDArray[np.float32]
Levels = npt.NDArray[np.int32]


@dataclass(frozen=True)
class Thresholds:
    """Scores above `low` are wanted LOW, scores above `skip` SKIP. At 1 neither ever happens."""

    low: float = 1.0
    skip: float = 1.0

    def __post_init__(self) -> None:
        if not 0 <= self.low <= self.skip <= 1:
            raise ValueError(
                f"thresholds must satisfy 0 <= low <= skip <= 1, not {self.low} and {self.skip}"
            )


def scores(weights: Weights) -> Weights:
    """Return the score of each expert: `weights` (T, K), in any order and of any sum, give (T, K).

    Equal weights rank in the order of the choice. All scores of a row are 0 where its weights say
    nothing: one is below 0 or not a number, or their sum is 0 or infinite.
    """
    order = np.argsort(-weights, axis=1, kind="stable")
    sums = np.cumsum(np.take_along_axis(weights, order, axis=1), axis=1, dtype=np.float32)
    total = sums[:, -1:]
    usable = (weights >= 0).all(axis=1, keepdims=True) & (total > 0) & np.isfinite(total)
    above = np.hstack([np.zeros_like(total), sums[:, :-1]])
    ranked = np.zeros_like(above)
    np.divide(above, total, out=ranked, where=usable)
    found = np.empty_like(ranked)
    np.put_along_axis(found, order, ranked, axis=1)
    return found


def levels(weights: Weights, thresholds: Thresholds) -> Levels:
    """Return the level at which each expert is wanted, (T, K), from the rows' `weights` (T, K).

    Experts that are prefetched get theirs from the predicted weights in the same way.
    """
    found = scores(weights)
    above = (found > np.float32(thresholds.low)).astype(np.int32)
    return above + (found > np.float32(thresholds.skip))


# --------------------------------------------------------------- fit to a model
MOST_RELATIVE_WEIGHT = 0.8  # between gpt-oss (0.83) and Qwen3 (0.71), of recorded routing


def fit(weights: Weights, low_share: float, skip_share: float = 0.0) -> Thresholds:
    """Return thresholds under which at most `low_share` of the experts chosen on calibration text,
    whose `weights` are (T, K), are wanted LOW, and at most `skip_share` SKIP."""
    if not (low_share >= 0 <= skip_share and low_share + skip_share <= 1):
        raise ValueError(f"shares are at least 0, together 1 at most: {low_share}, {skip_share}")
    ordered = np.sort(scores(weights), axis=None)
    return Thresholds(
        low=_exceeded_by(ordered, low_share + skip_share), skip=_exceeded_by(ordered, skip_share)
    )


def _exceeded_by(ordered: Weights, share: float) -> float:
    """Return the lowest of the `ordered` scores that at most `share` of them exceed; 1 for none."""
    most = int(share * len(ordered))
    return float(ordered[max(0, len(ordered) - 1 - most)]) if most else 1.0


def relative_weight(weights: Weights, thresholds: Thresholds) -> float:
    """Return the mean router weight of the experts that `thresholds` want below HIGH, over the mean
    of all experts chosen; 0 if there are none. At 1 they matter as much as any."""
    below = levels(weights, thresholds) != HIGH
    rows = below.any(axis=1)  # whose weights sum to more than 0
    if not rows.any():
        return 0.0
    normalised = weights[rows] / weights[rows].sum(axis=1, keepdims=True)
    return float(normalised[below[rows]].mean() * weights.shape[1])


def gains_little(weights: Weights, thresholds: Thresholds) -> bool:
    """Return whether the experts that would be read LOW or skipped weigh about as much as any
    other, so that quality would be paid for little, as with gpt-oss."""
    return relative_weight(weights, thresholds) > MOST_RELATIVE_WEIGHT
