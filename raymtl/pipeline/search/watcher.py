"""Passes the events of Tune's trials on to the terminal and the dashboard."""

import math
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ray import tune
from ray.tune.experiment import Trial

from raymtl.config import Experiment
from raymtl.evaluation.kept import BEST_STEP, is_last
from raymtl.pipeline.search.searcher import PROCESS_ENDED
from raymtl.reporting.terminal import Row, View, described
from raymtl.training.heartbeat import StallMonitor

if TYPE_CHECKING:  # the processes of trials, which import this, do not need it
    from raymtl.reporting.ray_dashboard.dashboard import Dashboard

LOOK_S = 2.0
"""How often it is looked whether a trial stands still."""


class Watcher(tune.Callback):
    """Passes the events of Tune's trials on to the view (terminal) and the board (dashboard)."""

    def __init__(self, experiment: Experiment, run: Path, view: View, board: "Dashboard") -> None:
        self.experiment, self.view, self.board = experiment, view, board
        self.run = run
        self.stall_monitor = StallMonitor(view.say)
        self.looked = -math.inf

    def __getstate__(self) -> dict[str, Any]:
        # Tune keeps a pickle of its parts, and neither a terminal nor the board has a place in it.
        return {}

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self._show(trial, {}, "running")
        self.board.on_trial_start(trial_name(trial), _values(trial))

    def on_step_end(self, iteration: int, trials: list[Any], **info: Any) -> None:
        now = time.monotonic()
        if now - self.looked < LOOK_S:
            return
        self.looked = now
        for trial in trials:
            if trial.status == Trial.RUNNING:
                number = trial.config["number"]
                self.stall_monitor.look(f"trial {number}", self.run / "trials" / f"{number:04d}")

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        if "failed" not in result:
            self._show(trial, result, "running")

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        result = trial.last_result or {}
        train = self.experiment.train
        pruned = not is_last(train, result.get("step", 0), result.get(BEST_STEP))
        if "failed" in result:
            state = "failed"
        elif pruned:
            state = "pruned"
        else:
            state = "complete"
        shown = self._show(trial, result, state)
        at = f"at step {shown.step} of {shown.steps}"
        self.board.on_trial_end(
            trial_name(trial), state, result.get("failed") or f"{at} {shown.score}".rstrip()
        )

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self._show(trial, trial.last_result or {}, "failed")
        self.board.on_trial_end(trial_name(trial), "failed", PROCESS_ENDED)

    def on_trial_recover(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self.board.on_trial_end(trial_name(trial), "restarting", PROCESS_ENDED)

    def _show(self, trial: Any, result: dict[str, Any], state: str) -> Row:
        row = {
            "step": result.get("step", 0),
            "state": state,
            "reason": result.get("failed"),
            **result,
            **_values(trial),
        }
        shown = row_of(self.experiment, row)
        self.view.show(f"trial {trial.config['number']}", shown)
        return shown


def trial_name(trial: Any) -> str:
    """The name of a trial in Tune, the board and the view."""
    return f"trial-{trial.config.get('number', 0):04d}"


def _values(trial: Any) -> dict[str, Any]:
    """Dotted name -> searched value."""
    return {key: value for key, value in trial.config.items() if key != "number"}


def row_of(experiment: Experiment, row: dict[str, Any]) -> Row:
    """The columns of a row of trials.parquet that the view shows."""
    metric = experiment.tune.metrics[0]
    if row.get(metric) is not None:
        score = f"{metric} {row[metric]:.4f}"
    else:
        score = ""
    return Row(
        row["step"],
        experiment.train.steps,
        row["state"],
        score,
        row.get("reason") or described(row, experiment.search),
    )
