"""raymtl: learn many tasks together, learn how to learn the next one, and search how.

The names below are the Python interface (docs/python.md). Each is imported when it is first used,
so that `import raymtl` takes no time.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from raymtl.api.model import Model, load_model
    from raymtl.api.run import Run, open_run
    from raymtl.api.trained import Adapted, adapt, evaluate, predict
    from raymtl.api.whole_runs import train, tune
    from raymtl.config import Experiment, load
    from raymtl.types import Batch, DivergedError, UserError

__version__ = "0.1.0"

__all__ = [
    "Adapted",
    "Batch",
    "DivergedError",
    "Experiment",
    "Model",
    "Run",
    "UserError",
    "adapt",
    "evaluate",
    "load",
    "load_model",
    "open_run",
    "predict",
    "train",
    "tune",
]


def __getattr__(name: str) -> Any:
    if name in ("Model", "load_model"):
        module = import_module("raymtl.api.model")
    elif name in ("Run", "open_run"):
        module = import_module("raymtl.api.run")
    elif name in ("Adapted", "adapt", "evaluate", "predict"):
        module = import_module("raymtl.api.trained")
    elif name in ("train", "tune"):
        module = import_module("raymtl.api.whole_runs")
    elif name in ("Experiment", "load"):
        module = import_module("raymtl.config")
    elif name in ("Batch", "DivergedError", "UserError"):
        module = import_module("raymtl.types")
    else:
        raise AttributeError(f"module 'raymtl' has no attribute {name!r}")
    return getattr(module, name)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
