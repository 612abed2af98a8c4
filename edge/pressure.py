"""Pressure: a model with `ram="auto"` follows the memory that other programs leave it.

Once a second it looks how much memory the system has left beside a reserve. What is lacking is
given back at once, from the slots of experts; what is left over is taken slowly, half of it at a
time. A model that streams nothing has nothing to give back.
"""

import logging
import threading
from collections.abc import Callable

from haversack.devices.errors import BudgetError, ClosedError
from haversack.devices.ledger import ledger
from haversack.devices.memory import probe_ram
from haversack.devices.units import format_bytes
from haversack.edge.model import Model
from haversack.edge.model_plan import STREAMED
from haversack.edge.planner import RESERVE_RAM_BYTES

_log = logging.getLogger("haversack.memory")

INTERVAL_S = 1.0
_LEAST_STEP_BYTES = 64 * 1024 * 1024  # a smaller change is not worth its work


def available_bytes() -> int:
    """Return the memory that programs can still take, without what models have not touched yet."""
    return probe_ram().available_bytes - ledger.untouched_bytes()


def wanted_bytes(ram_bytes: int, spare_bytes: int, least_bytes: int, most_bytes: int) -> int:
    """Return the budget of a model that has `ram_bytes`, where the system has `spare_bytes` more
    than its reserve; negative: so many are lacking."""
    step_bytes = spare_bytes if spare_bytes < 0 else spare_bytes // 2
    wanted = min(max(ram_bytes + step_bytes, least_bytes), most_bytes)
    is_large = abs(wanted - ram_bytes) >= _LEAST_STEP_BYTES or wanted in (least_bytes, most_bytes)
    return wanted if is_large else ram_bytes


class Pressure:
    """Resizes a model as other programs take and free memory, in a thread of its own until
    `stop`."""

    def __init__(
        self,
        model: Model,
        available: Callable[[], int] = available_bytes,
        reserve_bytes: int = RESERVE_RAM_BYTES,
    ) -> None:
        self._model, self._available, self._reserve_bytes = model, available, reserve_bytes
        planned = model.plan
        self._least_bytes = planned.floor_bytes
        self._most_bytes = max(planned.full_bytes, planned.ram_bytes)
        self._stopped = threading.Event()

    def start(self) -> None:
        """Begin to look. Where nothing can be given back, nothing is begun."""
        if self._model.plan.mode == STREAMED:
            threading.Thread(target=self._run, name="haversack pressure", daemon=True).start()

    def stop(self) -> None:
        self._stopped.set()

    def _run(self) -> None:
        while not self._stopped.wait(INTERVAL_S):
            try:
                self.look()
            except ClosedError:
                return

    def look(self) -> None:
        """Resize the model if it should have more or less. Raises ClosedError."""
        ram_bytes = self._model.plan.ram_bytes
        spare_bytes = self._available() - self._reserve_bytes
        wanted = wanted_bytes(ram_bytes, spare_bytes, self._least_bytes, self._most_bytes)
        if wanted == ram_bytes:
            return
        try:
            self._resize(wanted)
        except BudgetError as error:  # the system refuses, or others of a shared budget
            _log.info("the budget stays %s: %s", format_bytes(ram_bytes), error)

    def _resize(self, wanted: int) -> None:
        """Resize the model to what is wanted, or to its floor, where the process itself has grown
        since it was planned. Raises BudgetError."""
        ram_bytes = self._model.plan.ram_bytes
        try:
            self._model.resize(wanted)
        except BudgetError as error:
            if not wanted < error.need_bytes < ram_bytes:
                raise
            self._model.resize(error.need_bytes)
        now_bytes = self._model.plan.ram_bytes
        _log.info("the budget is %s, it was %s", format_bytes(now_bytes), format_bytes(ram_bytes))
