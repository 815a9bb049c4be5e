"""Whole runs from Python: `train` and `tune`."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

from raymtl import run_folder
from raymtl.api.run import Run
from raymtl.config import Experiment, check_space
from raymtl.data import Arrays
from raymtl.reporting.console import plain_console
from raymtl.reporting.notes import print_notes
from raymtl.storage.notes import Note
from raymtl.tracking.live import check_trackers, tracked
from raymtl.types import UserError

Announce = Callable[[Sequence[Note]], None]
"""Gets the notes on the data before anything is trained."""


def _announce(notes: Sequence[Note]) -> None:
    print_notes(plain_console(stderr=True), notes, "the run's summary.json has them")


def train(
    experiment: Experiment,
    *,
    address: str | None = None,
    resume: bool = False,
    announce: Announce = _announce,
) -> Run:
    """Trains one configuration on Ray Train workers, scores it and writes the report.

    It is `raymtl train`: the run folder has the same content. Ray is started on this machine, or
    connected to; a connection that this process has already is used, and stays.

    Args:
        experiment: the configuration.
        address: of a running Ray cluster; `RAY_ADDRESS` by default, or Ray starts here.
        resume: continue the newest run of this configuration.
        announce: gets the notes on the data before the training starts; they are printed to
            standard error by default.

    Raises:
        UserError: in one sentence what is wrong, before anything is started where possible.
        DivergedError: a loss is no finite number any more.

    Example:
        >>> run = raymtl.train(raymtl.load("tune_configs/quickstart.yaml"))
        >>> run.summary["models"][0]["score"]["after"]["mean"]
    """
    experiment = experiment.resolve()
    folder, arrays = _prepare(experiment, address, announce, command="train", resume=resume)
    from raymtl.pipeline import pipeline

    with tracked(folder, experiment.track, announce):
        pipeline.train_run(experiment, folder, arrays, address)
    return Run(folder)


def tune(
    experiment: Experiment,
    *,
    address: str | None = None,
    resume: bool = False,
    announce: Announce = _announce,
) -> Run:
    """Searches, trains the winner and its baselines, scores all of them and writes the report.

    It is `raymtl tune`; see `train` for the arguments and what is raised.
    """
    check_searchable(experiment)
    experiment = experiment.resolve()
    check_space(experiment)
    folder, arrays = _prepare(experiment, address, announce, command="tune", resume=resume)
    from raymtl.pipeline import pipeline

    with tracked(folder, experiment.track, announce):
        pipeline.tune(experiment, folder, arrays, address)
    return Run(folder)


def check_searchable(experiment: Experiment) -> None:
    """Raises UserError for a configuration without a search."""
    if not experiment.search:
        raise UserError(
            "search: expected something to search, got nothing. Use `raymtl train`, or add "
            "distributions."
        )


def _prepare(
    experiment: Experiment,
    address: str | None,
    announce: Announce,
    *,
    command: Literal["tune", "train"],
    resume: bool,
) -> tuple[Path, Arrays]:
    """The run folder, new or the latest of the command, and the data.

    Raises UserError where the machines do not suffice or the data cannot be read; then no folder
    is made.
    """
    from raymtl.pipeline import capacity

    check_trackers(experiment.track)
    capacity.refuse(experiment, address, searching=command == "tune")
    arrays = _load_data(experiment, announce)
    if resume:
        return run_folder.latest(experiment, command), arrays
    return run_folder.create(experiment), arrays


def _load_data(experiment: Experiment, announce: Announce) -> Arrays:
    """Reads the data, before anything is started or made: something may be wrong with them."""
    from raymtl.evaluation.scores import refuse_unscored

    with plain_console(stderr=True).status("reading the data"):
        arrays = experiment.data.load()
        refuse_unscored(experiment, arrays)
    announce((*experiment.data.notes(arrays), *experiment.notes_on_steps(arrays)))
    return arrays
