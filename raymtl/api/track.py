"""The numbers of a run for a tracker: `track`."""

from pathlib import Path

from raymtl import run_folder
from raymtl.api.checks import Place
from raymtl.api.run import Run
from raymtl.tracking.sinks import NAMES, sink
from raymtl.tracking.tracker import Tracker
from raymtl.types import UserError


def track(run: Run | Place, to: str) -> int:
    """Gives a tracker what it lacks of a run, whether the run is over or not (docs/tracking.md).

    It is `raymtl export RUN --to mlflow` or `wandb`. The run folder notes what was sent, so that
    nothing is sent twice.

    Args:
        run: a run or its folder.
        to: `mlflow` or `wandb`; where they are is said by their own environment variables.

    Returns:
        How many steps were sent.

    Raises:
        UserError: for another name, a missing package, and a tracker that cannot be reached.

    Example:
        >>> raymtl.track("runs/quickstart", "mlflow")
    """
    if to not in NAMES:
        raise UserError(f"to: expected {' or '.join(NAMES)}, got '{to}'.")
    if isinstance(run, Run):
        folder = run.folder
    else:
        folder = run_folder.existing(Path(run))
    tracker = Tracker(folder, sink(to))
    try:
        steps = tracker.update()
        tracker.sink.close()
    except Exception as error:  # trackers raise whatever their libraries do
        first = str(error).partition("\n")[0]
        raise UserError(
            f"--to {to}: {tracker.sink.place} cannot be written to ({first:.200}). What was sent "
            "is noted; give the command again when it can be reached."
        ) from None
    return steps
