"""What one does with a trained run from Python: `evaluate`, `adapt`, `predict`."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast, overload

import pyarrow as pa
from torch import nn

from raymtl import run_folder
from raymtl.adaptation.adapt import adapt_run
from raymtl.adaptation.request import AdaptationRequest
from raymtl.api.checks import AdaptOptions, Place, check_split
from raymtl.api.model import Model, load_model
from raymtl.api.run import Run
from raymtl.cluster.address import resolve
from raymtl.data import Arrays, Split
from raymtl.evaluation.evaluate import evaluate as score
from raymtl.evaluation.evaluate import load_model as load_parts
from raymtl.evaluation.predictions import write_held_out
from raymtl.features.load import with_features
from raymtl.prediction.new_rows import RowsToPredict, predict_table
from raymtl.prediction.output import checked_output, is_file
from raymtl.prediction.parts import Job
from raymtl.prediction.predict import (
    PredictedFiles,
    Report,
    check_parts,
    predict_to_file,
    predict_to_folder,
)
from raymtl.prediction.trained import load_trained
from raymtl.reporting.progress import rows_progress
from raymtl.storage import formats
from raymtl.storage.notes import Note

IN_THIS_PROCESS_MB = 1000.0
"""Files of which predictions are made without Ray, unless a cluster is given."""
Moved = Place | Mapping[str, str] | None
"""Where the run's data are now: a path, or a path for each key such as `tasks.boxes.path`."""


def _no_notes(notes: Sequence[Note]) -> None:
    """`metrics` has those on the scores."""


def evaluate(
    run: Run | Place,
    *,
    split: str = "test",
    episodes: int | None = None,
    data: Moved = None,
    predictions: Place | None = None,
    announce: Callable[[Sequence[Note]], None] = _no_notes,
) -> dict[str, Any]:
    """Scores the run's best model on held-out examples, before and after adaptation.

    It is `raymtl evaluate`; no Ray is started.

    Args:
        run: a run or its folder.
        split: `val` or `test`.
        episodes: their number; the configuration's own by default.
        data: where the run's data are now, if they have moved.
        predictions: a Parquet file to write: what a model that does not adapt predicts of every
            row of the split.
        announce: gets the notes on data that have moved.

    Returns:
        What metrics.json holds (docs/run-folder.md#metricsjson).

    Raises:
        UserError: in one sentence what is wrong.
    """
    check_split(split)
    scored_split = cast("Split", split)
    folder = _folder(run)
    experiment, algorithm, params = load_parts(folder / "best")
    moved = _moved(data)
    if moved:
        experiment = experiment.model_copy(update={"data": experiment.data.moved(moved)})
    arrays: Arrays = experiment.data.load()
    if moved:
        announce(experiment.data.notes(arrays))
    with rows_progress() as report:
        arrays = with_features(experiment, arrays, run=folder, report=report).arrays
    if predictions is not None:
        path = Path(predictions)
        write_held_out(path, experiment.data, algorithm, params, arrays, scored_split)
    return score(
        experiment, algorithm, params, arrays, split=scored_split, episodes=episodes
    ).metrics


@dataclass(frozen=True)
class Adapted:
    """What `adapt` wrote."""

    written: Mapping[str, Any]
    """What `raymtl adapt --json` prints: the folder, the examples, the scores, notes."""

    @property
    def folder(self) -> Path:
        """RUN/adapted/NAME."""
        return Path(self.written["folder"])

    @property
    def scores(self) -> Mapping[str, Any]:
        """Of `adapt` before and after by metric; of a transfer what scores.json holds."""
        if "scores" in self.written:
            scores: Mapping[str, Any] = self.written["scores"]
            return scores
        return formats.read_json(self.folder / "scores.json")

    @property
    def predictions(self) -> pa.Table:
        """A row for each example that was to be predicted (docs/adapt.md#predictionsparquet)."""
        return formats.read_table(self.folder / "predictions.parquet")

    @property
    def model(self) -> nn.Module:
        """The adapted `Model`, or the network of a transfer."""
        if (self.folder / "transfer.yaml").exists():
            from raymtl.adaptation.transferred import load_network

            return load_network(self.folder)[0]
        return load_model(self.folder)


# There are as many parameters as options of the command.
def adapt(  # noqa: PLR0913
    run: Run | Place,
    support: Place | None = None,
    query: Place | None = None,
    *,
    episode: int = 0,
    steps: int | None = None,
    name: str | None = None,
    task: str | None = None,
    transfer: str | None = None,
    values: Mapping[str, Any] | None = None,
    data: Moved = None,
) -> Adapted:
    """Adapts the run's best model to a new task; writes the model and its predictions.

    It is `raymtl adapt`; no Ray is started.

    Args:
        run: a run or its folder.
        support: a file or folder in the form of those of the run, with labels.
        query: another one, whose rows are predicted; by default the rows of `support` without a
            label.
        episode: without `support`, the number of a held-out test episode.
        steps: inner steps; the learner's own by default.
        name: the folder below RUN/adapted; made from the support set by default.
        task: the only task that `support` has labels of.
        transfer: `feature`, `model` or `target`: to a task with a head of its own
            (docs/transfer.md).
        values: dotted values of the transfer, such as `{"task.kind": "regression"}`.
        data: where the run's data are now, if they have moved.

    Raises:
        UserError: in one sentence what is wrong.

    Example:
        >>> raymtl.adapt("runs/own-data", "new.csv", "asked.csv").predictions.to_pandas()
    """
    options = AdaptOptions(support, query, episode, steps, task, transfer, values)
    options.check()
    request = AdaptationRequest(
        run=_folder(run),
        support=_path(support),
        query=_path(query),
        episode=episode,
        task=task,
        name=name,
        moved=_moved(data),
    )
    if transfer is None:
        return Adapted(adapt_run(request, steps))
    from raymtl.adaptation.new_data import TransferRequest
    from raymtl.adaptation.transfer import parse_transfer
    from raymtl.adaptation.transfer_run import transfer_run
    from raymtl.reporting.terminal import View

    parsed = parse_transfer(transfer, values or {})
    with View(f"raymtl adapt --transfer {transfer}") as view:
        return Adapted(transfer_run(TransferRequest(request, parsed), view))


@overload
def predict(source: Model | Run | Place, rows: Place) -> pa.Table: ...


@overload
def predict(
    source: Model | Run | Place, rows: Place, *, output: Place, address: str | None = None
) -> PredictedFiles: ...


def predict(
    source: Model | Run | Place,
    rows: Place,
    *,
    output: Place | None = None,
    address: str | None = None,
) -> pa.Table | PredictedFiles:
    """What a model predicts of rows that it never saw. It is `raymtl predict`.

    Args:
        source: a model, or a run, whose best model predicts.
        rows: a file, a folder or a URL in the form of those that the run was trained on; its
            columns of labels may be missing.
        output: a Parquet file to write, whose name ends in `.parquet`, or a folder or a URL, which
            gets a file for each part of the rows. The rows are then read block by block, and need
            not fit into memory.
        address: a Ray cluster whose machines predict for a folder; else RAY_ADDRESS. Without
            either Ray starts here, but for files of less than 1 GB.

    Returns:
        A row for each of them, with the columns of predictions.parquet
        (docs/adapt.md#predictionsparquet); with `output` what was written.

    Raises:
        UserError: for rows that do not fit, for a model that first has to be adapted, and for an
            output that exists.

    Example:
        >>> raymtl.predict("runs/own-data", "new.csv").to_pandas()
        >>> raymtl.predict("runs/own-data", "s3://bucket/rows", output="predicted")
    """
    place = None
    if output is not None:
        place = checked_output(str(output))
    if isinstance(source, Model):
        trained = source.parts
    else:
        trained = load_trained(_folder(source))
    if place is None:
        return predict_table(trained, str(rows))
    opened = RowsToPredict(trained, str(rows))
    with rows_progress() as report:
        if is_file(place):
            return predict_to_file(trained, opened, Path(place), report)
        return _predict_to_folder(Job(trained, opened, place), address, report)


def _predict_to_folder(job: Job, address: str | None, report: Report) -> PredictedFiles:
    """By Ray Data if a cluster is given or the files are large; else in this process."""
    check_parts(job.trained, job.rows)
    if resolve(address) is None and job.rows.megabytes < IN_THIS_PROCESS_MB:
        return predict_to_folder(job, report=report)
    from raymtl.distributed.connection import connected
    from raymtl.distributed.predict_rows import on_ray

    with connected(address):
        return predict_to_folder(job, driver=on_ray, report=report)


def _folder(run: Run | Place) -> Path:
    if isinstance(run, Run):
        return run.folder
    return run_folder.existing(Path(run))


def _path(place: Place | None) -> Path | None:
    if place is None:
        return None
    return Path(place)


def _moved(data: Moved) -> Mapping[str, str]:
    if data is None:
        return {}
    if isinstance(data, Mapping):
        return data
    return {"path": str(data)}
