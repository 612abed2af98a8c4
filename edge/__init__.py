"""The runtime people use: plan, load, generate, chat.

from haversack import edge

with edge.load("model.gguf", ram="6GiB") as model:
    for text in model.generate("Once upon a time"):
        print(text, end="")
"""

from haversack.devices.errors import (
    BindingError,
    BudgetError,
    CancelledError,
    ClosedError,
    ContextError,
    HaversackError,
    ModelFileError,
    PromptError,
    StorageError,
    UnitError,
)
from haversack.edge.generation import Generation
from haversack.edge.model import LoadOptions, Model, builtin_model, load
from haversack.edge.planner import Plan, plan
from haversack.edge.sampling import Sampling
from haversack.edge.stats import Stats

__all__ = [
    "BindingError",
    "BudgetError",
    "CancelledError",
    "ClosedError",
    "ContextError",
    "Generation",
    "HaversackError",
    "LoadOptions",
    "Model",
    "ModelFileError",
    "Plan",
    "PromptError",
    "Sampling",
    "Stats",
    "StorageError",
    "UnitError",
    "builtin_model",
    "load",
    "plan",
]
