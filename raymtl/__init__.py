"""raymtl: learn many tasks together, learn how to learn the next one, and search how.

The names below are the Python interface (docs/python.md). Each is imported when it is first used,
so that `import raymtl` takes no time.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from raymtl.api.adapters import export_adapters
    from raymtl.api.export import export
    from raymtl.api.model import Model, load_model
    from raymtl.api.run import Run, open_run
    from raymtl.api.service import serve
    from raymtl.api.track import track
    from raymtl.api.trained import Adapted, adapt, evaluate, predict
    from raymtl.api.whole_runs import train, tune
    from raymtl.config import Experiment, load
    from raymtl.data.base import Source
    from raymtl.encoders.base import Encoder, EncoderSpecBase, from_module
    from raymtl.learners.base import MetaLearner
    from raymtl.modes.base import Mode
    from raymtl.prediction.predict import PredictedFiles
    from raymtl.schema.components import register
    from raymtl.sharing.base import SharingArchitecture, SharingSpecBase
    from raymtl.types import (
        Batch,
        DivergedError,
        LabelStatistics,
        Metric,
        Task,
        TaskKind,
        UserError,
    )
    from raymtl.weighting.base import (
        GradientWeighting,
        GradientWeightingSpec,
        LossWeighting,
        LossWeightingSpec,
    )

__version__ = "0.1.0"

__all__ = [
    "Adapted",
    "Batch",
    "DivergedError",
    "Encoder",
    "EncoderSpecBase",
    "Experiment",
    "GradientWeighting",
    "GradientWeightingSpec",
    "LabelStatistics",
    "LossWeighting",
    "LossWeightingSpec",
    "MetaLearner",
    "Metric",
    "Mode",
    "Model",
    "PredictedFiles",
    "Run",
    "SharingArchitecture",
    "SharingSpecBase",
    "Source",
    "Task",
    "TaskKind",
    "UserError",
    "adapt",
    "evaluate",
    "export",
    "export_adapters",
    "from_module",
    "load",
    "load_model",
    "open_run",
    "predict",
    "register",
    "serve",
    "track",
    "train",
    "tune",
]

_HOMES = {
    "raymtl.api.adapters": ("export_adapters",),
    "raymtl.api.export": ("export",),
    "raymtl.api.model": ("Model", "load_model"),
    "raymtl.api.run": ("Run", "open_run"),
    "raymtl.api.service": ("serve",),
    "raymtl.api.track": ("track",),
    "raymtl.api.trained": ("Adapted", "adapt", "evaluate", "predict"),
    "raymtl.api.whole_runs": ("train", "tune"),
    "raymtl.config": ("Experiment", "load"),
    "raymtl.data.base": ("Source",),
    "raymtl.encoders.base": ("Encoder", "EncoderSpecBase", "from_module"),
    "raymtl.learners.base": ("MetaLearner",),
    "raymtl.modes.base": ("Mode",),
    "raymtl.prediction.predict": ("PredictedFiles",),
    "raymtl.schema.components": ("register",),
    "raymtl.sharing.base": ("SharingArchitecture", "SharingSpecBase"),
    "raymtl.types": (
        "Batch",
        "DivergedError",
        "LabelStatistics",
        "Metric",
        "Task",
        "TaskKind",
        "UserError",
    ),
    "raymtl.weighting.base": (
        "GradientWeighting",
        "GradientWeightingSpec",
        "LossWeighting",
        "LossWeightingSpec",
    ),
}
"""Module -> the names that it has."""


def __getattr__(name: str) -> Any:
    for module, names in _HOMES.items():
        if name in names:
            return getattr(import_module(module), name)
    raise AttributeError(f"module 'raymtl' has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
