"""The runtime people use: plan, load, generate, chat.

from haversack import edge

with edge.load("model.gguf", ram="6GiB") as model:
    for text in model.generate("Once upon a time"):
        print(text, end="")

A name is imported when it is first used: the command line must be able to set its handler of
Ctrl-C before llama.cpp and NumPy are loaded.
"""

from importlib import import_module

TYPE_CHECKING = False  # type checkers take it for true; importing `typing` takes 5 ms

if TYPE_CHECKING:
    from haversack.devices.errors import (
        AbortedError,
        BindingError,
        BudgetError,
        CancelledError,
        ClosedError,
        ContextError,
        DeviceError,
        HaversackError,
        ModelFileError,
        PromptError,
        StorageError,
        UnitError,
    )
    from haversack.edge.async_loading import aload
    from haversack.edge.fidelity import Fidelity
    from haversack.edge.forecasting import Forecast, forecast
    from haversack.edge.generation import Generation
    from haversack.edge.isolated import IsolatedGeneration, IsolatedModel, load_isolated
    from haversack.edge.loading import LoadOptions, builtin_model, load
    from haversack.edge.model import Model
    from haversack.edge.model_plan import Plan
    from haversack.edge.planner import plan
    from haversack.edge.preparation import Prepared, PrepareOptions, prepare
    from haversack.edge.sampling import Sampling
    from haversack.edge.shared_budget import Budget
    from haversack.edge.stats import Stats

__all__ = [
    "AbortedError",
    "BindingError",
    "Budget",
    "BudgetError",
    "CancelledError",
    "ClosedError",
    "ContextError",
    "DeviceError",
    "Fidelity",
    "Forecast",
    "Generation",
    "HaversackError",
    "IsolatedGeneration",
    "IsolatedModel",
    "LoadOptions",
    "Model",
    "ModelFileError",
    "Plan",
    "PrepareOptions",
    "Prepared",
    "PromptError",
    "Sampling",
    "Stats",
    "StorageError",
    "UnitError",
    "aload",
    "builtin_model",
    "forecast",
    "load",
    "load_isolated",
    "plan",
    "prepare",
]

_MODULES = {
    "Budget": "haversack.edge.shared_budget",
    "Fidelity": "haversack.edge.fidelity",
    "Forecast": "haversack.edge.forecasting",
    "Generation": "haversack.edge.generation",
    "IsolatedGeneration": "haversack.edge.isolated",
    "IsolatedModel": "haversack.edge.isolated",
    "LoadOptions": "haversack.edge.loading",
    "Model": "haversack.edge.model",
    "Plan": "haversack.edge.model_plan",
    "PrepareOptions": "haversack.edge.preparation",
    "Prepared": "haversack.edge.preparation",
    "Sampling": "haversack.edge.sampling",
    "Stats": "haversack.edge.stats",
    "aload": "haversack.edge.async_loading",
    "builtin_model": "haversack.edge.loading",
    "forecast": "haversack.edge.forecasting",
    "load": "haversack.edge.loading",
    "load_isolated": "haversack.edge.isolated",
    "plan": "haversack.edge.planner",
    "prepare": "haversack.edge.preparation",
}


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(_MODULES.get(name, "haversack.devices.errors")), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
