"""A run folder from Python."""

from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa

from raymtl import config, run_folder
from raymtl.api.checks import Place
from raymtl.api.model import Model, load_model
from raymtl.config import Experiment
from raymtl.storage import formats
from raymtl.storage.notes import Note
from raymtl.types import UserError

TRIAL_COLUMNS = ("number", "state", "step")
"""Of trials.parquet, whatever was searched."""


class Curves(NamedTuple):
    """How a run's best model came about, and how it adapts."""

    training: pa.Table
    """A row for each outer step (docs/run-folder.md#historyparquet)."""
    adaptation: pa.Table
    """A row for each number of inner steps: `step`, and each score with its `.ci95`."""


class Run:
    """A run folder. Its files are read when they are asked for.

    Tables are pyarrow's, and `.to_pandas()` makes data frames of them where pandas is installed.

    Example:
        >>> run = raymtl.open_run("runs/quickstart")
        >>> run.trials.sort_by([("val.score", "descending")]).slice(0, 5).to_pandas()
        >>> run.model.adapt(support).predict(inputs)
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __repr__(self) -> str:
        return f"Run({str(self.folder)!r})"

    @cached_property
    def config(self) -> Experiment:
        """The complete configuration."""
        return config.load(self.folder / "config.yaml")

    @property
    def summary(self) -> dict[str, Any]:
        """The results (docs/run-folder.md#summaryjson). Raises UserError before the run ended."""
        return formats.read_json(self.folder / "summary.json")

    @property
    def scores(self) -> dict[str, Any]:
        """What `metrics.json` of the best model holds (docs/run-folder.md#metricsjson)."""
        return formats.read_json(self.folder / "best" / "metrics.json")

    @property
    def notes(self) -> list[Note]:
        """What was decided for you, and the key that changes it."""
        return [Note(**note) for note in self.summary["notes"]]

    @property
    def trials(self) -> pa.Table:
        """A row for each trial of a search (docs/run-folder.md#trialsparquet).

        Raises UserError for a run without trials.
        """
        path = self.folder / "trials.parquet"
        table = formats.read_table(path)
        if not len(table):
            raise UserError(
                f"{self.folder}: expected a search with trials, got none yet. Start one with "
                "`raymtl tune`."
            )
        if not set(TRIAL_COLUMNS) <= set(table.column_names):
            raise UserError(
                f"{path}: expected the columns number, state and step, got {table.column_names}."
            )
        return table

    @property
    def curves(self) -> Curves:
        """The training and the adaptation of the best model."""
        training = formats.read_table(self.folder / "best" / "history.parquet")
        return Curves(training, _adaptation(self.scores["curve"]))

    @property
    def model(self) -> Model:
        """The best model, read anew."""
        return load_model(self.folder)

    @property
    def report(self) -> Path:
        """The page with tables and plots, written again."""
        from raymtl.reporting.html import write_report

        return write_report(self.folder)


def _adaptation(curve: Mapping[str, Any]) -> pa.Table:
    columns = {"step": curve["steps"]}
    for key, values in curve.items():
        if key != "steps":
            columns |= {key: values["mean"], f"{key}.ci95": values["ci95"]}
    return pa.table(columns)


def open_run(path: Place) -> Run:
    """Opens a run folder. Raises UserError where there is none.

    Example:
        >>> raymtl.open_run("runs/quickstart").summary["best_values"]
    """
    return Run(run_folder.existing(Path(path)))
