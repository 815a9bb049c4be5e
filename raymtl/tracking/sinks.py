"""The trackers by their names."""

from raymtl.tracking.tracker import Sink
from raymtl.types import UserError

NAMES = ("mlflow", "wandb")


def sink(name: str) -> Sink:
    """The tracker of this name. Raises UserError where its package is missing."""
    try:
        if name == "mlflow":
            from raymtl.tracking.mlflow_sink import MlflowSink

            return MlflowSink()
        from raymtl.tracking.wandb_sink import WandbSink

        return WandbSink()
    except ImportError as error:
        raise UserError(
            f"track: expected the package of {name}, which cannot be imported ({error}). Install "
            f"it by pip install 'raymtl[{name}]'."
        ) from None
