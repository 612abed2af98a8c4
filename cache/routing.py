"""Routing toward the cache: a router's choice that leans to experts with a copy in a slot.

Only which experts are chosen changes, never their weights, and the experts that the router ranks
first stay chosen (cache-conditional routing, arXiv 2412.00099). The engine has the rule in C++
(offload/native/leaning.cpp).
"""

from dataclasses import dataclass


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
