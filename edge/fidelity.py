"""Fidelity: how near to exact a model is computed where its experts are streamed.

`exact` has llama.cpp's bits. `balanced` and `fast` read low copies of the experts that matter
little for a token, or nothing, where those experts are missing (see `cache/precision.py`). Of its
own, and in any mode, is a bias of the routers to experts in slots (see `cache/routing.py`).
"""

import logging
import shlex
from dataclasses import dataclass, replace
from pathlib import Path

from haversack.cache.precision import Thresholds, Weights, fit, gains_little
from haversack.cache.routing import Leaning
from haversack.devices.errors import HaversackError, PromptError
from haversack.edge.model_plan import DENSE, EXACT, STREAMED, Plan
from haversack.edge.precision_plan import with_precision
from haversack.offload.precision import Precision
from haversack.quant.importance import read_router_weights
from haversack.quant.lowbit import LowCopies, find_low
from haversack.quant.records import importance_path, low_path

_log = logging.getLogger("haversack.fidelity")

BALANCED, FAST = "balanced", "fast"
MODES = (EXACT, BALANCED, FAST)

_SMALL_SHARE = 0.45  # low copies of fewer of the experts' bytes are small ones


@dataclass(frozen=True)
class _Shares:
    """Which share of the experts that routers choose is wanted LOW, and which SKIP, if they are
    missing; and which share of a batch's rows the experts have that a batch reads LOW."""

    low: float
    skip: float
    batch_low: float


# Measured: docs/fidelity.md. The thresholds are for models that no text was calibrated on, with
# large low copies and with small ones: on recorded routing they want about as many experts LOW.
_SHARES = {BALANCED: _Shares(0.52, 0.28, 0.1), FAST: _Shares(0.42, 0.48, 0.2)}
_PROBED_SHARES = 0.55, 0.02  # LOW and SKIP, to see whether the experts weigh about the same
_THRESHOLDS = {
    BALANCED: (Thresholds(0.5, 0.93), Thresholds(0.6, 0.95)),
    FAST: (Thresholds(0.35, 0.85), Thresholds(0.45, 0.85)),
}


@dataclass(frozen=True)
class Fidelity:
    """What is asked for: a mode, `exact`, `balanced` or `fast`.

    The low copies are those of `low_from`, a smaller GGUF of the same model, or else those that
    `prepare` made. `low_share` and `skip_share` are the shares of chosen experts that are used as
    low copies or left out if they are missing; without them they are the mode's. With `route_bias`,
    0 to 1, routers choose as if the score of an expert in a slot were higher by that part of the
    range of scores; weights stay, and so do the first experts. Raises PromptError.
    """

    mode: str = EXACT
    low_from: str | Path | None = None
    low_share: float | None = None
    skip_share: float | None = None
    route_bias: float = 0.0

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise PromptError(f"--fidelity is {self.mode!r}: give {', '.join(MODES)}")
        for name, share in (("--low-share", self.low_share), ("--skip-share", self.skip_share)):
            if share is not None and not 0 <= share <= 1:
                raise PromptError(f"{name} is {share}: give a number from 0 to 1")
            if share is not None and self.mode == EXACT:
                raise PromptError(
                    f"{name} is {share}, but exact has no low copies: give --fidelity"
                )
        if self.low_from is not None and self.mode == EXACT:
            raise PromptError(
                f"--low-from is {self.low_from}, but exact reads no low copies: give --fidelity"
                f" {BALANCED} or {FAST}"
            )
        if not 0 <= self.route_bias <= 1:
            raise PromptError(f"--route-bias is {self.route_bias}: give a number from 0 to 1")
        if self.mode != EXACT and self.shares.low + self.shares.skip > 1:
            raise PromptError(
                f"--low-share {self.shares.low} and --skip-share {self.shares.skip} are more than 1"
                " together: lower one of them"
            )

    @property
    def shares(self) -> _Shares:
        """The mode's shares, or those given."""
        found = _SHARES[self.mode]
        low = found.low if self.low_share is None else self.low_share
        skip = found.skip if self.skip_share is None else self.skip_share
        return _Shares(low, skip, found.batch_low)

    @property
    def has_own_shares(self) -> bool:
        return self.low_share is not None or self.skip_share is not None

    def applied(self, planned: Plan, cache_dir: Path) -> Plan:
        """Return the plan with this fidelity; `cache_dir` is where `prepare` left low copies.

        It stays exact, with a warning, where nothing would be gained. Raises HaversackError if
        there are no low copies, ModelFileError for a `low_from` that has none of this model,
        BudgetError. Without a calibration the thresholds are fitted to the first rows that are
        computed.
        """
        planned = self._leaning(planned)
        if self.mode == EXACT or planned.mode == DENSE:
            return planned
        low_from = None if self.low_from is None else Path(self.low_from)
        low = find_low(planned.geometry, cache_dir, low_from)
        name = planned.path.name
        if low is None:
            command = f"haversack prepare {shlex.quote(str(planned.path))}"
            raise HaversackError(
                f"{self.mode} needs low copies of {name}'s experts, and {cache_dir} has none: run"
                f" `{command}`, or give a smaller GGUF of the same model with --low-from"
            )
        weights = read_router_weights(importance_path(low_path(planned.geometry, cache_dir)))
        why = self._why_exact(planned, weights)
        if why is not None:
            _log.warning("%s: %s, so it runs exact", name, why)
            return planned
        precision = self._precision(planned, low, weights)
        return with_precision(planned, self.mode, precision)

    def _leaning(self, planned: Plan) -> Plan:
        """Return the plan with routers that lean to slots, if that is asked for and possible."""
        if not self.route_bias:
            return planned
        why = None
        if planned.mode != STREAMED:
            why = "no expert is streamed"
        elif planned.geometry.num_experts_per_tok == 1:
            why = "its routers choose one expert, which stays"
        if why is not None:
            _log.warning("%s: --route-bias changes nothing, %s", planned.path.name, why)
            return planned
        return replace(
            planned, leaning=Leaning.of(planned.geometry.num_experts_per_tok, self.route_bias)
        )

    def _why_exact(self, planned: Plan, weights: Weights | None) -> str | None:
        """Return why nothing would be gained, None if something is."""
        if planned.mode != STREAMED:
            return "all experts fit into memory and none is read"
        return None if weights is None else self._why_weights_gain_little(weights)

    def _why_weights_gain_little(self, weights: Weights) -> str | None:
        if self.has_own_shares or not gains_little(weights, fit(weights, *_PROBED_SHARES)):
            return None
        return f"its experts weigh about the same and {self.mode} would gain little"

    def _precision(self, planned: Plan, low: LowCopies, weights: Weights | None) -> Precision:
        """Return one whose thresholds are fitted to the calibration's `weights`. Without one they
        are the defaults for low copies of these bytes, until the first rows show weights."""
        shares = self.shares
        if weights is not None:
            return Precision(low, fit(weights, shares.low, shares.skip), shares.batch_low)

        def fitted(found: Weights) -> Thresholds:
            why = self._why_weights_gain_little(found)
            if why is None:
                return fit(found, shares.low, shares.skip)
            _log.warning("%s: %s, so from now on it runs exact", planned.path.name, why)
            return Thresholds()

        first = _THRESHOLDS[self.mode][_bytes_share(planned, low) < _SMALL_SHARE]
        return Precision(low, first, shares.batch_low, fitted)


def _bytes_share(planned: Plan, low: LowCopies) -> float:
    """Return the bytes of the low copies, as a share of the experts'."""
    layers = planned.geometry.layers
    low_bytes = sum(low.expert_bytes(idx) * layers[idx].num_experts for idx in range(len(layers)))
    return low_bytes / planned.geometry.expert_bytes
