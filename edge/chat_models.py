"""The model that a chat talks with: one at a time is in memory, and another may take its place."""

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from haversack.devices.errors import BudgetError
from haversack.edge.given_text import given_path
from haversack.edge.model import Model
from haversack.edge.model_plan import Plan


class ChatModels:
    """Opens the model at `path`, None for the built-in one, and closes it at the end of its `with`
    block.

    `plan` and `load` say how a model is opened. Raises what they raise, and PromptError for a model
    without a chat template.
    """

    def __init__(
        self,
        path: Path | None,
        plan: Callable[[Path | None], Plan],
        load: Callable[[Plan], Model],
    ) -> None:
        self._path, self._plan, self._load = path, plan, load
        self.model = self._opened(path)

    def change(self, name: str) -> None:
        """Close the model and open another one. If that fails, the old one is opened again, and
        what was wrong is raised; for what is no model it is not even closed."""
        path, before = given_path("/model", name).expanduser(), self._path
        with suppress(BudgetError):  # there may be room once the old one is closed
            self._plan(path)
        self.model.close()
        try:
            self.model, self._path = self._opened(path), path
        except BaseException:
            self.model = self._opened(before)
            raise

    def _opened(self, path: Path | None) -> Model:
        model = self._load(self._plan(path))
        try:
            model.chat_template()  # without a template every turn would fail
        except BaseException:
            model.close()
            raise
        return model

    def __enter__(self) -> "ChatModels":
        return self

    def __exit__(self, *_: object) -> None:
        self.model.close()
